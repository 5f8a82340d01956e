"""Every kind of line in the samples arrives as a human would read it: the reviewed table is expected.jsonl."""

from __future__ import annotations

import gzip
import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

from shipper.parse import Parser
from shipper.record import LEVELS, Batch, Resource
from shipper.tailing.traces import Trace, open_trace

HERE = Path(__file__).parent
SAMPLES = HERE.parent / "samples"


def entries(path: Path) -> list[tuple[str, int]]:
    """Read a Docker log as a source would: partials and traces joined per stream, with Docker's time."""
    records: list[list[Any]] = []
    partial: dict[str, str] = {}
    open_: dict[str, tuple[Trace, list[Any]]] = {}
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        for line in file:
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # the samples hold a line that was cut by a rotation
            stream = entry["stream"]
            text = partial.pop(stream, "") + entry["log"]
            if not text.endswith("\n"):
                partial[stream] = text
                continue
            text = text.rstrip("\r\n")
            if stream in open_ and open_[stream][0].continues(text):
                open_[stream][1][0] += "\n" + text
                continue
            open_.pop(stream, None)
            records.append([text, nanoseconds(entry["time"])])
            trace = open_trace(text)
            if trace is not None:
                open_[stream] = (trace, records[-1])
    records.extend([text, nanoseconds("2026-11-22T20:47:24Z")] for text in partial.values())
    return [(text, stamp) for text, stamp in records]


def nanoseconds(text: str) -> int:
    whole, _, fraction = text.removesuffix("Z").partition(".")
    return int(datetime.fromisoformat(whole + "+00:00").timestamp()) * 10**9 + int(fraction.ljust(9, "0"))


def short(value: Any) -> Any:
    """Write runs of one character as a count, so that a line of 36,000 letters can be read."""
    text = json.dumps(value, ensure_ascii=False)
    return json.loads(re.sub(r"([a-z])\1{50,}", lambda match: f"{match[1]}*{len(match[0])}", text))


def kind(text: str) -> str:
    if text.startswith('{"action"'):
        return re.sub(r"\d+", "9", text)[:20]
    return "access" if '] "GET' in text else re.sub(r"\d+", "9", text)[:60]


def table() -> list[dict[str, Any]]:
    """Give one row for each kind of line: the line and the record it became."""
    lines: dict[str, tuple[str, int]] = {}
    for path in sorted(SAMPLES.glob("containers/*/*-json.log*")):
        for text, stamp in entries(path):
            lines.setdefault(kind(text), (text, stamp))
    for text in (SAMPLES / "logs/fallback.log").read_text().splitlines():
        lines.setdefault(text[24 : text.index("]")], (text, 0))
    rows = list(lines.values())
    batch = Batch(
        times=[stamp for _, stamp in rows],
        stamps=[stamp for _, stamp in rows],
        hashes=[0] * len(rows),
        raws=[text for text, _ in rows],
        resources=[Resource("samples", {})] * len(rows),
        offsets=[64] * len(rows),
    )
    Parser().parse(batch)
    assert batch.severities is not None
    return [
        {
            "line": short(record.raw),
            "time": "docker's" if stamp and record.time_ns == stamp else str(record.time_ns),
            "level": LEVELS[record.severity],
            "message": short(record.message),
            "attributes": short(record.attributes),
        }
        for record, (_, stamp) in zip(batch.records(), rows, strict=True)
    ]


def test_every_kind_of_sample_line_becomes_the_record_in_the_reviewed_table() -> None:
    expected = [json.loads(line) for line in (HERE / "expected.jsonl").read_text().splitlines()]
    assert table() == expected


def test_every_sample_line_goes_through_and_keeps_its_raw_text() -> None:
    for path in sorted(SAMPLES.glob("containers/*/*-json.log*")):
        rows = entries(path)
        if not rows:
            continue
        texts = [text for text, _ in rows]
        stamps = [stamp for _, stamp in rows]
        batch = Batch(
            list(stamps), list(stamps), [0] * len(rows), list(texts), [Resource("s", {})] * len(rows), [0] * len(rows)
        )
        Parser().parse(batch)
        assert batch.raws == texts
        assert batch.messages is not None
        assert batch.attributes is not None
        for text, message, attributes in zip(texts, batch.messages, batch.attributes, strict=True):
            assert message or not text
            if text.startswith('{"') and text.endswith("}"):
                assert attributes, text
            if "\n    at " in text and not text.startswith("{"):
                assert attributes["exception.stacktrace"] == text
