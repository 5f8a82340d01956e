"""Raw lines that were read back are parsed as the pipeline would have."""

from __future__ import annotations

from shipper.parse.reparse import reparse
from shipper.record import Record, Resource, make_id

TIME = 1_767_323_045_123_456_789


def record(raw: str, *, severity: int = 0, source: str = "docker", **attributes: object) -> Record:
    return Record(make_id(TIME, 1), TIME, severity, raw, attributes, raw, Resource(source, {}), 5)


def test_level_message_and_attributes_come_from_the_line_and_the_rest_stays() -> None:
    before = record('{"level":"warn","message":"slow","ms":5,"time":"2020-01-01T00:00:00Z"}')
    [after] = reparse([before], {})
    assert (after.level, after.message, after.attributes["ms"]) == ("warn", "slow", 5)
    assert (after.id, after.time_ns, after.raw, after.offset) == (before.id, TIME, before.raw, 5)
    assert after.resource is before.resource


def test_severity_that_the_backend_told_stays() -> None:
    found = list(reparse([record("ERROR x", severity=9), record("ERROR x")], {}))
    assert [one.level for one in found] == ["info", "error"]


def test_attributes_that_the_source_gave_are_kept() -> None:
    [found] = reparse([record('{"message":"x","a":1}', **{"log.record.part": 2})], {})
    assert found.attributes == {"a": 1, "log.record.part": 2}


def test_each_source_has_its_parser_and_order_is_kept() -> None:
    line = "2026-01-02T03:04:05Z [error] broken"
    records = [record(line, source=name) for name in ("plain", "fallback", "gone", "plain")] * 700
    found = list(reparse(iter(records), {"plain": "plain", "fallback": "fallback"}))
    assert [one.message for one in found[:4]] == [line, "broken", "broken", line]
    assert len(found) == len(records)
    assert [one.resource for one in found] == [one.resource for one in records]


def test_nothing_is_read_ahead_of_what_is_needed() -> None:
    taken = []

    def endless() -> object:
        while True:
            taken.append(1)
            yield record("x")

    next(reparse(endless(), {}))  # type: ignore[arg-type]
    assert len(taken) <= 200


def test_time_attribute_that_became_the_records_time_stays_away() -> None:
    """Docker's time, which decided that, is in the id."""
    raw = '{"message":"x","timestamp":"2020-01-01T00:00:00.000Z"}'
    own = Record(make_id(TIME, 1), 1_577_836_800_000_000_000, 9, raw, {}, raw, Resource("docker", {}), 5)
    [found] = reparse([own], {})
    assert found.attributes == {}
    assert found.time_ns == own.time_ns
