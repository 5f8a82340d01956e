"""``shipper spill``: what waits for a removed sink is shown, and dropped only by name, on purpose, and in peace."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from shipper.delivery.spill import Spill
from shipper.fs import FileSystem
from shipper.state.checkpoint import Checkpoint, Cursor
from shipper.testing.batches import make_batch

Run = Callable[..., "CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def _spill(tmp_path: Path) -> None:
    (tmp_path / "shipper.yaml").write_text(
        f"sources: {{app: {{type: file, include: [{tmp_path}/app.log]}}}}\n"
        f"sinks: {{new: {{type: blackhole}}}}\nstate_dir: {tmp_path}/state\n"
    )
    (tmp_path / "state").mkdir()
    for name, count in (("old", 7), ("new", 3)):
        spill = Spill(
            tmp_path / "state" / "spill" / name,
            limit=1 << 20,
            fs=FileSystem(),
            cursor=Cursor(0, 0),
            on_lost=lambda _cause, _count: None,
        )
        for _ in range(2):
            spill.append(make_batch(["line"] * count))
        spill.close()


def segments(tmp_path: Path, name: str) -> int:
    return len(list((tmp_path / "state" / "spill" / name).glob("*.seg")))


def test_list_counts_records_and_says_who_delivers_them(run: Run) -> None:
    done = run("spill", "ls")
    assert done.returncode == 0
    new, old = done.stdout.splitlines()
    assert new.startswith("new: at most 6 records, ")
    assert new.endswith("in use")
    assert old.startswith("old: at most 14 records, ")
    assert old.endswith("not in the configuration")


def test_drop_says_how_much_is_gone(run: Run, tmp_path: Path) -> None:
    done = run("spill", "drop", "old", "--yes")
    assert done.returncode == 0, done.stderr
    assert "14 records" in done.stdout
    assert (segments(tmp_path, "old"), segments(tmp_path, "new")) == (0, 1)
    assert run("spill", "drop", "old", "--yes").returncode == 1


def test_drop_asks_and_takes_silence_as_no(run: Run, tmp_path: Path) -> None:
    assert run("spill", "drop", "old").returncode != 0
    assert segments(tmp_path, "old") == 1


def test_spill_of_a_configured_sink_is_never_dropped(run: Run, tmp_path: Path) -> None:
    done = run("spill", "drop", "new", "--yes")
    assert done.returncode == 2
    assert "is in the configuration" in done.stderr
    assert segments(tmp_path, "new") == 1


def test_nothing_is_dropped_beside_a_running_daemon(run: Run, tmp_path: Path) -> None:
    with (tmp_path / "state" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = run("spill", "drop", "old", "--yes")
        assert done.returncode == 75
        assert "in use by another shipper" in done.stderr
        assert segments(tmp_path, "old") == 1
        assert run("spill", "ls").returncode == 0


def test_name_is_never_taken_for_a_path(run: Run, tmp_path: Path) -> None:
    assert run("spill", "drop", "../spill/old", "--yes").returncode == 1
    assert segments(tmp_path, "old") == 1


def damage(tmp_path: Path, name: str) -> None:
    (segment,) = (tmp_path / "state" / "spill" / name).glob("*.seg")
    data = bytearray(segment.read_bytes())
    data[40] ^= 0xFF
    segment.write_bytes(data)


def test_check_says_what_is_whole_and_where_what_is_not(run: Run, tmp_path: Path) -> None:
    done = run("spill", "check")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "new: 6 records in 2 batches are whole, 0 records are lost",
        "old: 14 records in 2 batches are whole, 0 records are lost",
    ]
    damage(tmp_path, "old")
    done = run("spill", "check", "old")
    assert done.returncode == 1
    first, second = done.stdout.splitlines()
    assert first == "old: 7 records in 1 batches are whole, 7 records are lost"
    assert "0000000000000001.seg: bytes 0 to " in second
    assert "checksum" in second
    assert run("spill", "check", "../spill/old").returncode == 1


def test_export_prints_what_can_be_read(run: Run, tmp_path: Path) -> None:
    damage(tmp_path, "old")
    done = run("spill", "export", "old")
    assert done.returncode == 0
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["raw"] for line in lines] == ["line"] * 7
    assert set(lines[0]) == {"id", "time", "level", "message", "attributes", "raw", "resource", "offset"}
    assert "7 records cannot be read" in done.stderr
    assert run("spill", "export", "nobody").returncode == 1


def test_repair_keeps_what_is_whole_and_the_damaged_file_and_notes_the_loss(run: Run, tmp_path: Path) -> None:
    damage(tmp_path, "new")
    assert run("spill", "repair", "new").returncode != 0, "no answer is no"
    done = run("spill", "repair", "new", "--yes")
    assert done.returncode == 0, done.stderr
    assert "new: 3 records kept, 3 lost" in done.stdout
    assert ".seg.damaged" in done.stdout
    assert run("spill", "check", "new").returncode == 0
    assert len(run("spill", "export", "new").stdout.splitlines()) == 3
    checkpoint = Checkpoint(tmp_path / "state")
    assert [(one.sink, one.reason, one.records) for one in checkpoint.given_up()] == [("new", "spill_damaged", 3)]
    checkpoint.close()
    done = run("spill", "repair", "new", "--yes")
    assert "nothing is damaged, 3 records are whole" in done.stdout


def test_repair_is_refused_beside_a_running_daemon(run: Run, tmp_path: Path) -> None:
    damage(tmp_path, "old")
    with (tmp_path / "state" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = run("spill", "repair", "old", "--yes")
        assert done.returncode == 75
        assert "in use by another shipper" in done.stderr
        assert run("spill", "check", "old").returncode == 1
        assert len(run("spill", "export", "old").stdout.splitlines()) == 7
