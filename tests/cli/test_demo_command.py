"""``shipper demo``: real logs through the real daemon into SQLite, and read back from it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]
DATA = Path(__file__).parents[2] / "shipper" / "demo_data"


def test_demo_ships_shows_and_ships_nothing_twice(tmp_path: Path, run: Run) -> None:
    base = tmp_path / "a demo $HOME"
    first = run("demo", "--dir", base)
    assert first.returncode == 0, first.stderr
    assert "TypeError: Cannot read properties of null (reading 'x')\n    │     at /app/app.js:12:34\n" in first.stdout
    assert "Logs DB unavailable, saving fail 29" in first.stdout
    assert f"shipper query --config {base}/shipper.yaml" in first.stderr
    everything = ("query", "--config", base / "shipper.yaml", "--all", "-o", "json")
    rows = [json.loads(line) for line in run(*everything).stdout.splitlines()]
    assert {row.get("service") for row in rows} == {"api", "worker", None}
    assert len({row["id"] for row in rows}) == len(rows) > 60
    assert "hunter2" not in json.dumps(rows)

    assert run("demo", "--dir", base).stdout == first.stdout
    assert len(run(*everything).stdout.splitlines()) == len(rows)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's configuration, after the demo ran once."""
    import sys

    base = tmp_path_factory.mktemp("demo")
    subprocess.run(
        [sys.executable, "-m", "shipper", "demo", "--dir", str(base)], check=True, capture_output=True, timeout=60
    )
    return base / "shipper.yaml"


@pytest.mark.parametrize(
    "arguments",
    [
        ("level>=warn",),
        ("--level", "error"),
        ("--service", "api"),
        ("--service", "worker", "done"),
        ("--user", "12"),
        ("action:login",),
        ("action:(login logout) -user_id:11",),
        ("http.response.status_code>=500",),
        ("http.request.method:GET", "url.path:/^.api.fails.1/"),
        ("container.name:faildaily-api-1", "level:warn"),
        ("container:faildaily-w*",),
        ("source:fallback", "level:error OR logout"),
        ("stream:stderr",),
        ("log.file.path:*",),
        ("user_id:*",),
        ("NOT user_id:*",),
        ("duration_ms>1300",),
    ],
)
def test_sqlite_finds_what_filtering_everything_finds(shipped: Path, run: Run, arguments: tuple[str, ...]) -> None:
    """Searching in the database never loses a match that the condition itself would find in all rows."""
    from shipper.config.loader import load
    from shipper.reader import Query
    from shipper.routing.condition import compile_all
    from sinks.sqlite import READER

    answer = run("query", "--config", shipped, "--all", "-o", "json", *arguments)
    assert answer.returncode == 0, answer.stderr
    found = {json.loads(line)["id"] for line in answer.stdout.splitlines()}
    flags = {"--level": "level:{}", "--service": "service:{}", "--user": "user_id:{}"}
    texts = list(arguments)
    terms = [flags[texts.pop(0)].format(texts.pop(0))] if texts[0] in flags else []
    condition = compile_all([" ".join(texts), *terms])
    reader = READER(load(shipped, {}).sinks["sqlite"])
    try:
        expected = {record.id for record in reader.read(Query()) if condition.matches(record)}
    finally:
        reader.close()
    assert found == expected
    assert expected, "the samples hold something for every one of these"


def test_samples_hold_no_environment() -> None:
    for about in DATA.glob("containers/*/config.v2.json"):
        assert json.loads(about.read_text())["Config"]["Env"] is None
