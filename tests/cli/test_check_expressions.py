"""``shipper check`` says when expressions of the user's run on an engine that a hostile line can hold up."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from shipper.__main__ import command
from shipper.routing import pattern

CONFIG = """
sources: {{app: {{type: file, include: [/nowhere/*.log]}}}}
sinks: {{out: {{type: stdout}}}}
active: out
state_dir: {state}
{more}
"""
ROUTE = "routes: [{match: 'level>=error message:/time.?out/i', to: out}]"
FILTER = "transforms: {noise: {type: filter, drop: 'path:/^.health/ OR NOT (level>=info path:/x+/)'}}"
SAMPLE = "transforms: {some: {type: sample, rate: 0.5, match: 'path:/^.a/'}}"
REDACT = "transforms: {mask: {type: redact, rules: [email, {name: iban, pattern: 'DE[0-9]{20}'}]}}"


def check(tmp_path: Path, more: str) -> tuple[int, str, str]:
    path = tmp_path / "shipper.yaml"
    path.write_text(CONFIG.format(state=tmp_path / "state", more=more))
    result = CliRunner().invoke(command, ["check", "--config", str(path)], standalone_mode=False)
    assert result.exception is None
    return int(result.return_value or 0), result.stdout, result.stderr


@pytest.mark.parametrize(
    ("more", "what"),
    [
        (ROUTE, "the regular expression /time.?out/ runs on Python's re"), (FILTER, "2 regular expressions run on Python's re"),
        (SAMPLE, "the regular expression /^.a/ runs"), (REDACT, "the regular expression /DE[0-9]{20}/ runs"),
    ],
)  # fmt: skip
def test_without_re2_they_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: str, what: str) -> None:
    monkeypatch.setattr(pattern, "linear_engine", lambda: None)
    code, out, err = check(tmp_path, more)
    assert (code, "fine" in out) == (0, True)
    assert what in err
    assert "pip install 'shipper[re2]'" in err


def test_nothing_is_told_without_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pattern, "linear_engine", lambda: None)
    assert check(tmp_path, "routes: [{match: 'level>=error', to: out}]")[2] == ""
    assert check(tmp_path, "transforms: {mask: {type: redact, rules: [email]}}")[2] == ""


@pytest.mark.skipif(pattern.linear_engine() is None, reason="google-re2 is not installed")
def test_nothing_is_told_with_re2(tmp_path: Path) -> None:
    assert check(tmp_path, ROUTE)[2] == ""
