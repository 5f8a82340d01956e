"""Our own log tells what files, hosts and lines say: none of it steers a terminal, forges an event or is lost."""

from __future__ import annotations

import io
import json
import re
import threading
import time

import pytest

from shipper.config.types import LogConfig
from shipper.secret import Masker
from shipper.telemetry import logs
from shipper.telemetry.event import Event
from shipper.telemetry.lokilog import _line

RAW = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)
EVIL = "a\x1b]0;t\x07\x1b[2J\x9b31m\x85\u202e\u2066\u200b\ufeff\u061c\r\x7f\n12:00:00 [error    ] daemon: FORGED\u2028\udcff"


@pytest.mark.parametrize("form", ["text", "json"])
def test_no_event_steers_a_terminal_or_forges_another(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(logs.FORMAT_VARIABLE, raising=False)
    stream = io.StringIO()
    # Here and not in a fixture: so pytest's own handlers do not get what its workers cannot send.
    configured = logs.configure(LogConfig(format=form), stream)
    log = logs.get_logger("reader")
    log.warning(EVIL, path=EVIL, names=[EVIL, [EVIL]], **{f"k={EVIL}": 1})
    with pytest.raises(ValueError) as raised:
        _fail()
    log.error("broken", exc_info=raised.value)
    configured.close()
    text = stream.getvalue()
    assert "could not be written" not in text
    assert text.count("FORGED") >= 5
    assert not RAW.search(text)
    events = [line for line in text.splitlines() if not line.startswith("    ")]
    assert len(events) == 2
    assert not [line for line in text.splitlines() if line.startswith("12:00:00")]


def _fail() -> None:
    raise ValueError(EVIL)


def test_json_reads_back_what_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(logs.FORMAT_VARIABLE, raising=False)
    stream = io.StringIO()
    log = logs.configure(LogConfig(format="json"), stream)
    logs.get_logger("x").warning("odd", path=EVIL, number=1 << 80)
    log.close()
    told = json.loads(stream.getvalue())
    assert (told["path"], told["number"]) == (EVIL, 1 << 80)


def test_what_goes_to_loki_is_json_whatever_it_holds() -> None:
    text = _line(Event(0.0, 30, "x", EVIL, {"path": EVIL}))
    assert not RAW.search(text)
    assert json.loads(text)["path"] == EVIL


@pytest.mark.parametrize(
    "text",
    ["a." * 500_000, "secret" * 200_000, "password" + " " * 1_000_000, 'token="' * 100_000, "a=" * 400_000, "://@" * 300_000,
     "?a=" * 300_000, "authorization:" * 70_000, "basic " * 160_000, "x" * 1_000_000],
    ids=lambda text: text[:8],
)  # fmt: skip
def test_masking_takes_time_linear_in_the_text(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(logs.FORMAT_VARIABLE, raising=False)
    log = logs.configure(LogConfig(format="json"), io.StringIO(), mask=Masker(["a-known-secret"]))
    began = time.process_time()
    logs.get_logger("x").warning("failed", error=text)
    short = time.process_time() - began
    log.close()
    assert short < 1.0
    masker = Masker(["a-known-secret"])
    began = time.process_time()
    masker(text[: len(text) // 8])
    eighth = time.process_time() - began
    began = time.process_time()
    masker(text)
    assert time.process_time() - began < 40 * max(eighth, 0.005)


def test_what_ends_a_thread_is_an_event_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(logs.FORMAT_VARIABLE, raising=False)
    stream = io.StringIO()
    before = threading.excepthook
    log = logs.configure(LogConfig(format="json"), stream, mask=Masker(["S3CRETvalue"]))

    def end() -> None:
        raise RuntimeError(f"a driver quotes S3CRETvalue {EVIL}")

    thread = threading.Thread(target=end, name="delivery-x")
    thread.start()
    thread.join()
    log.close()
    told = json.loads(stream.getvalue())
    assert (told["event"], told["thread"]) == ("a thread ended by a bug", "delivery-x")
    assert "a driver quotes ***" in told["traceback"]
    assert threading.excepthook is before
