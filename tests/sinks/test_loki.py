"""The Loki sink and its reader, against the stand-in that holds Loki's limits and gives its answers."""

from __future__ import annotations

import gzip
import json
import random
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest

from shipper.clock import SystemClock
from shipper.delivery.buffer import Buffer
from shipper.delivery.deadletter import DeadLetters
from shipper.delivery.delivery import Delivery
from shipper.delivery.spill import Spill
from shipper.errors import ConfigError, ParkedError, PartialError, PermanentError, RetryableError, SinkError
from shipper.fs import FileSystem
from shipper.reader import Query
from shipper.record import Batch, Record, Resource
from shipper.routing.condition import compile_condition
from shipper.sink import Sink
from shipper.state.checkpoint import Checkpoint, Cursor
from shipper.state.ledger import Ledger
from shipper.telemetry.health import Health
from shipper.telemetry.metrics import Metrics
from shipper.testing.batches import START_NS, make_batch, make_resource, random_batch
from shipper.testing.clock import FakeClock
from shipper.testing.http_server import Reply, Request
from shipper.testing.sink_contract import FIELDS, SinkContract
from sinks.loki import LokiConfig, LokiReader, LokiSink
from support.certificates import Authority
from support.daemon import Daemon
from support.loki_server import LokiLimits, LokiServer

HOUR = 3600 * 10**9
DAY = 24 * HOUR


class Place:
    """A server, and sinks and readers of it that share its clock, which stands a day after the first record."""

    def __init__(self, **options: Any) -> None:
        self.clock = FakeClock(START_NS + DAY)
        self.server = LokiServer(clock=self.clock.time_ns, **options)
        self._sinks: list[LokiSink] = []

    def config(self, **options: Any) -> LokiConfig:
        return LokiConfig(**self.server.sink(**options))

    def sink(self, **options: Any) -> LokiSink:
        sink = LokiSink(self.config(**options), clock=self.clock)
        sink.open()
        self._sinks.append(sink)
        return sink

    def read(self, options: dict[str, Any] | None = None, **query: Any) -> list[Record]:
        reader = LokiReader(self.config(**(options or {})), clock=self.clock)
        try:
            return list(reader.read(Query(**{"oldest_first": True, **query})))
        finally:
            reader.close()

    def close(self) -> None:
        for sink in self._sinks:
            sink.close()
        self.server.close()


@pytest.fixture
def place() -> Iterator[Place]:
    place = Place()
    yield place
    place.close()


class _Skipping(SystemClock):
    """Waits of the delivery move the place's clock on and take no time."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self.waits: list[float] = []

    def wait(self, event: object, seconds: float) -> bool:
        self.waits.append(seconds)
        self._clock.advance(seconds)
        return event.is_set()  # type: ignore[attr-defined, no-any-return]


class Delivered:
    """Batches delivered through a real `Delivery` until nothing is pending."""

    def __init__(self, tmp_path: Path, place: Place, sink: LokiSink, *batches: Batch) -> None:
        clock = _Skipping(place.clock)
        self.waits = clock.waits
        self.metrics, self.health = Metrics(), Health()
        ledger = Ledger(Checkpoint(tmp_path), ["s"], clock)
        buffer = Buffer(
            Spill(tmp_path / "spill", limit=64 << 20, fs=FileSystem(), cursor=Cursor(0, 0), on_lost=lambda *_: None),
            clock=clock,
            max_memory=64 << 20,
            drop_oldest=False,
            on_safe=lambda spans: None,
            on_cursor=lambda cursor: None,
            on_dropped=lambda n: None,
        )
        self._letters = DeadLetters(tmp_path / "s.jsonl")
        delivery = Delivery(
            "s", sink, buffer, ledger=ledger, dead_letters=self._letters, clock=clock, metrics=self.metrics,
            health=self.health, rng=random.Random(1),
        )  # fmt: skip
        for batch in batches:
            buffer.put(batch)
        delivery.start()
        delivery.drain()
        assert delivery.join(30)
        buffer.close()

    def dead(self) -> dict[str, str]:
        """Reasons by id."""
        return {entry.id: entry.reason for entry in self._letters.entries()}


class _Contract(SinkContract):
    example = Path("config/examples/loki.yaml")
    exactly_once = True
    options: ClassVar[dict[str, Any]] = {}
    server_options: ClassVar[dict[str, Any]] = {}

    @pytest.fixture(autouse=True)
    def _place(self) -> Iterator[None]:
        # Random batches span 12 days.
        self.place = Place(limits=LokiLimits(reject_old_samples=False), **self.server_options)
        self.place.clock.advance(30 * 86_400)
        yield
        self.place.close()

    def make_sink(self, tmp_path: Path) -> Sink:
        return LokiSink(self.place.config(max_age="", **self.options), clock=self.place.clock)

    def read_back(self, sink: Sink) -> list[Record]:
        return self.place.read({"max_age": "", **self.options}, since=START_NS - DAY)

    def order_key(self, record: Record) -> Any:
        return record.time_ns, record.id


class TestLokiRawLines(_Contract):
    # A raw line holds its attributes itself; whoever reads parses it.
    compares = FIELDS - {"attributes"}


class TestLokiJsonLines(_Contract):
    options: ClassVar = {"line": "json"}


class TestLokiLogfmtLinesAsProtobufBefore37(_Contract):
    options: ClassVar = {"line": "logfmt", "encoding": "protobuf"}
    server_options: ClassVar = {"metadata_counts": False}


# What an answer means


@pytest.mark.parametrize(
    ("status", "text", "kind"),
    [
        (200, "", ParkedError),
        (201, "", ParkedError),
        (202, "", ParkedError),
        (260, "ingestion blocked for user fake until '2026-01-01T00:00:00Z' with status code '260'", ParkedError),
        (301, "", ParkedError),
        (307, "", ParkedError),
        (401, "no org id", ParkedError),
        (403, "forbidden", ParkedError),
        (404, "404 page not found", ParkedError),
        (405, "", ParkedError),
        (400, "loghttp.PushRequest.Streams: unexpected", PermanentError),
        (400, "couldn't parse labels: 1:2: parse error", ParkedError),
        (400, "error at least one label pair is required per stream", ParkedError),
        (400, "entry for stream '{a=\"b\"}' has 16 label names; limit 15", ParkedError),
        (400, "stream '{a=\"b\"}' has label value too long: 'x'", ParkedError),
        (400, "missing required labels app for user fake for stream {}", ParkedError),
        (400, "stream '{}' includes structured metadata, but this feature is disallowed. Please see", ParkedError),
        (413, "request body too large: 1 bytes, limit: 0 bytes", PermanentError),
        (
            429,
            "Ingestion rate limit exceeded for user fake (limit: 9 bytes/sec) ... totaling '5' bytes",
            RetryableError,
        ),
        (429, "Per stream rate limit exceeded (limit: 3MB/sec)", RetryableError),
        (429, "Maximum active stream limit exceeded when trying to create stream {}", ParkedError),
        (500, "Ingester is shutting down", RetryableError),
        (500, "at least 1 live replicas required, could only find 0", RetryableError),
        (
            500,
            "rpc error: code = ResourceExhausted desc = grpc: received message larger than max (9 vs. 4)",
            PermanentError,
        ),
        (502, "", RetryableError),
        (503, "circuit breaker open", RetryableError),
        (504, "", RetryableError),
    ],
)
def test_answer_has_its_class_and_nothing_counts_as_stored(place: Place, status: int, text: str, kind: Any) -> None:
    sink = place.sink()
    place.server.script(Reply(status, text.encode()))
    with pytest.raises(SinkError) as caught:
        sink.write(make_batch(["one"]))
    error = caught.value.failed[0] if isinstance(caught.value, PartialError) else caught.value
    assert type(error) is kind
    assert text[:40] in str(error)
    sink.write(make_batch(["one"]))
    assert place.server.messages() == ["one"]


def test_time_that_a_proxy_names_is_kept_to(place: Place) -> None:
    place.server.script(Reply(429, b"slow down", {"Retry-After": "17"}))
    with pytest.raises(RetryableError) as caught:
        place.sink().write(make_batch(["one"]))
    assert caught.value.retry_after == 17


def test_block_with_260_keeps_every_record_until_it_is_lifted(place: Place, tmp_path: Path) -> None:
    place.server.blocked = 260
    original = place.server._push

    def lifted_after_two(request: Request, user: str) -> Reply:
        if len(place.server.requests) > 2:
            place.server.blocked = None
        return original(request, user)

    place.server._push = lifted_after_two  # type: ignore[method-assign]
    delivered = Delivered(tmp_path, place, place.sink(), make_batch(["one", "two"]))
    assert place.server.messages() == ["one", "two"]
    assert delivered.dead() == {}
    assert len(delivered.waits) == 2


def test_batch_is_sent_again_byte_for_byte(place: Place) -> None:
    sink = place.sink()
    batch = make_batch([f"line {n}" for n in range(50)], level=["info", "error"] * 25)
    place.server.script(Reply(503))
    with pytest.raises(RetryableError):
        sink.write(batch)
    sink.write(batch)
    first, second = [request.body for request in place.server.requests[:2]]
    assert first == second


@pytest.mark.parametrize("encoding", ["json", "protobuf"])
def test_answer_that_got_lost_stores_nothing_twice(place: Place, tmp_path: Path, encoding: str) -> None:
    place.server.script(Reply(500, b"context canceled"), stored=True)
    batch = make_batch([f"line {n}" for n in range(100)])
    Delivered(tmp_path, place, place.sink(encoding=encoding), batch)
    assert place.server.messages() == batch.raws


class _NewRule(LokiServer):
    """Refuses a push with a certain line, all of it, for a reason nobody has heard of."""

    def answer(self, request: Request) -> Reply:
        if request.path.endswith("/push") and b"poison" in gzip.decompress(request.body):
            return Reply(400, b"a rule of a later version")
        return super().answer(request)


def test_refusal_that_nobody_knows_is_bisected_to_the_record(tmp_path: Path) -> None:
    place = Place()
    place.server.close()
    place.server = _NewRule(clock=place.clock.time_ns)
    lines = [f"line {n}" if n != 37 else "poison" for n in range(100)]
    batch = make_batch(lines, level=["info", "warn"] * 50)
    delivered = Delivered(tmp_path, place, place.sink(), batch)
    assert list(delivered.dead()) == [batch.ids[37]]
    assert "a rule of a later version" in delivered.dead()[batch.ids[37]]
    assert sorted(place.server.messages()) == sorted(line for line in lines if line != "poison")
    place.close()


# Lines that are too long


@pytest.mark.parametrize("encoding", ["json", "protobuf"])
@pytest.mark.parametrize(("size", "parts"), [(4095, 1), (4096, 1), (4097, 2), (8192, 2), (8193, 3)])
def test_long_line_goes_in_parts_and_comes_back_whole(encoding: str, size: int, parts: int) -> None:
    place = Place(limits=LokiLimits(max_line_size=4096))
    options = {"max_line_size": 4096, "encoding": encoding}
    text = ("é" * size)[: size // 2] + "x" * (size % 2)
    batch = make_batch(["before", text, "after"], step_ns=1)
    place.sink(**options).write(batch)
    assert place.server.count == 2 + parts
    assert [record.message for record in place.read(options)] == batch.raws
    assert [record.message for record in place.read(options, oldest_first=False)] == batch.raws[::-1]
    assert [record.id for record in place.read(options)] == batch.ids
    place.close()


def test_two_long_lines_of_one_time_and_text_stay_two(place: Place) -> None:
    batch = make_batch(["x" * 300_000] * 2, step_ns=0)
    place.sink().write(batch)
    assert sorted(record.id for record in place.read()) == sorted(batch.ids)
    assert [record.message for record in place.read()] == batch.raws
    assert {record.time_ns for record in place.read()} == {START_NS}


def test_part_of_a_long_line_is_better_than_nothing(place: Place) -> None:
    batch = make_batch(["a" * 262_144 + "b" * 10])
    place.sink().write(batch)
    assert place.server.count == 2
    for stream in place.server._streams.values():
        stream.entries.pop(0)
    assert [(record.id, record.message) for record in place.read()] == [(batch.ids[0], "b" * 10)]


def test_server_that_takes_shorter_lines_than_configured_is_believed(tmp_path: Path) -> None:
    place = Place(limits=LokiLimits(max_line_size=1000))
    lines = ["short", "y" * 1000, "z" * 1001, "w" * 600_000, "end"]
    batch = make_batch(lines)
    delivered = Delivered(tmp_path, place, place.sink(), batch)
    assert delivered.dead() == {}
    assert [record.message for record in place.read()] == lines
    sent = len(place.server.requests)
    Delivered(tmp_path / "second", place, place._sinks[0], make_batch(["v" * 3000], start_ns=START_NS + 10**9))
    assert place.server.messages()[-1] == "v" * 3000
    assert len(place.server.requests) <= sent + 5  # learnt: no refusal, three parts
    place.close()


# Age


def test_record_at_the_edge_of_max_age_is_taken_and_one_beyond_is_dead_lettered(place: Place, tmp_path: Path) -> None:
    oldest = place.clock.time_ns() - 7 * DAY
    batch = make_batch(["just", "old"], start_ns=oldest, step_ns=-1)
    delivered = Delivered(tmp_path, place, place.sink(), batch)
    assert place.server.messages() == ["just"]
    assert list(delivered.dead()) == [batch.ids[1]]
    assert "older than max_age, 7d" in delivered.dead()[batch.ids[1]]


def test_record_from_the_future_is_taken_up_to_ten_minutes(place: Place, tmp_path: Path) -> None:
    newest = place.clock.time_ns() + 600 * 10**9
    batch = make_batch(["just", "too new"], start_ns=newest, step_ns=1)
    delivered = Delivered(tmp_path, place, place.sink(), batch)
    assert place.server.messages() == ["just"]
    assert list(delivered.dead()) == [batch.ids[1]]


@pytest.mark.parametrize("off", [-400 * DAY, -8 * DAY, 8 * DAY])
def test_clock_of_ours_that_is_wrong_costs_no_record(tmp_path: Path, off: int) -> None:
    place = Place()
    own = FakeClock(place.clock.time_ns() + off)
    sink = LokiSink(place.config(), clock=own)
    delivered = Delivered(
        tmp_path, place, sink, make_batch(["one", "two"]), make_batch(["old"], start_ns=START_NS - 9 * DAY)
    )
    assert place.server.messages() == ["one", "two"]
    assert len(delivered.dead()) == 1
    place.close()


def test_many_old_records_do_not_put_the_sink_under_suspicion(place: Place, tmp_path: Path) -> None:
    batch = make_batch(["old"] * 500, start_ns=START_NS - 30 * DAY)
    delivered = Delivered(tmp_path, place, place.sink(), batch, make_batch(["new"]))
    assert len(delivered.dead()) == 500
    assert delivered.waits == []
    assert place.server.messages() == ["new"]


def test_any_age_is_taken_where_loki_takes_it(tmp_path: Path) -> None:
    place = Place(limits=LokiLimits(reject_old_samples=False))
    batch = make_batch(["years ago"], start_ns=START_NS - 900 * DAY)
    place.sink(max_age="").write(batch)
    assert place.server.messages() == ["years ago"]
    assert [record.id for record in place.read({"max_age": ""})] == batch.ids
    place.close()


@pytest.mark.parametrize("encoding", ["json", "protobuf"])
def test_refusals_of_age_that_only_the_server_knows_are_found_by_second_and_count(
    tmp_path: Path, encoding: str
) -> None:
    """The server's limits are narrower than ours; it names seconds only, so the second itself is told apart by count."""
    place = Place(limits=LokiLimits(reject_old_samples_max_age=3600 * 8, creation_grace_period=60))
    now = place.clock.time_ns()
    oldest = now - 8 * HOUR
    times = [oldest + step * 250_000_000 for step in range(-6, 7)]
    newer = [now + 60 * 10**9 + step * 250_000_000 for step in range(-6, 7)]
    order = random.Random(3).sample(times + newer, 26)
    batch = make_batch([f"line {n}" for n in range(26)], level=["info", "warn"] * 13)
    batch.times = order
    delivered = Delivered(tmp_path, place, place.sink(encoding=encoding), batch)
    good = {batch.ids[n] for n in range(26) if oldest <= order[n] <= now + 60 * 10**9}
    assert set(place.server.ids()) == good
    assert set(delivered.dead()) == set(batch.ids) - good
    place.close()


# An hour behind the stream's head


def _backfills(place: Place) -> set[str]:
    return {stream.get("backfill", "") for stream in place.server.streams}


def test_record_far_behind_its_stream_goes_to_the_stream_of_its_day_then_hour(place: Place, tmp_path: Path) -> None:
    sink = place.sink()
    head = START_NS + 20 * HOUR
    batches = [
        make_batch(["head"], start_ns=head),
        make_batch(["within"], start_ns=head - HOUR),
        make_batch(["late"], start_ns=head - HOUR - 1),
        make_batch(["later"], start_ns=head - 4 * HOUR),
        make_batch(["day before"], start_ns=head - 30 * HOUR),
    ]
    for batch in batches:
        sink.write(batch)
    assert _backfills(place) == {"", "2026-01-02", "2026-01-02T19:00:00Z", "2026-01-01"}
    found = place.read()
    assert [record.message for record in found] == ["day before", "later", "late", "within", "head"]
    assert all(not request.body or record.resource.attributes.get("backfill") is None
               for request, record in zip(place.server.requests, found, strict=False))  # fmt: skip
    # The same again, as after a crash: each finds its place, and nothing is stored twice.
    for batch in batches:
        sink.write(batch)
    assert place.server.count == 5


def test_backlog_in_order_of_time_stays_in_its_stream(place: Place) -> None:
    sink = place.sink()
    for day in range(-5, 1):
        sink.write(make_batch([f"{day} {n}" for n in range(30)], start_ns=START_NS + day * DAY, step_ns=HOUR // 2))
    assert _backfills(place) == {""}
    assert place.server.count == 180


def test_batch_that_spans_days_out_of_order_is_put_in_order(place: Place) -> None:
    batch = make_batch([str(n) for n in range(60)])
    batch.times = random.Random(1).sample([START_NS - n * HOUR for n in range(60)], 60)
    place.sink().write(batch)
    assert _backfills(place) == {""}
    assert sorted(place.server.ids()) == sorted(batch.ids)


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("encoding", ["json", "protobuf"])
def test_server_whose_streams_are_ahead_of_what_we_know_refuses_nothing_for_good(
    tmp_path: Path, encoding: str, masks: bool
) -> None:
    """Another writer, or ourselves before a restart: the heads are unknown, the answer tells, or hides, the refusal."""
    place = Place(masks=masks)
    levels = ["debug", "info", "warn", "error"]
    place.sink().write(make_batch(["head"] * 4, start_ns=START_NS + 10 * HOUR, level=levels))
    # 200 records, of every stream some on both sides of the second in which the refusal ends.
    edge = START_NS + 9 * HOUR
    times = [edge + (n - 100) * 20_000_000 for n in range(200)]
    batch = make_batch([f"line {n}" for n in range(200)], level=levels * 50)
    batch.times = times
    delivered = Delivered(tmp_path, place, place.sink(encoding=encoding), batch)
    assert delivered.dead() == {}
    assert {*place.server.ids()} >= {*batch.ids}
    assert [record.id for record in place.read(until=START_NS + 10 * HOUR)] == batch.ids
    late = [metadata["id"] for labels, *_, metadata in place.server.entries() if "backfill" in labels]
    assert late == [batch.ids[n] for n in range(200) if times[n] < edge]
    place.close()


def test_refusal_of_the_ingester_does_not_hide_that_of_the_distributor(tmp_path: Path) -> None:
    place = Place(limits=LokiLimits(max_line_size=2000))
    place.sink().write(make_batch(["head"], start_ns=START_NS + 10 * HOUR))
    batch = make_batch(["late", "z" * 5000, "fine"], start_ns=START_NS + 9 * HOUR - 10**9, step_ns=10**9)
    delivered = Delivered(tmp_path, place, place.sink(), batch)
    assert delivered.dead() == {}
    assert [record.message for record in place.read(until=START_NS + 10 * HOUR)] == batch.raws
    place.close()


def test_window_smaller_than_configured_parks_and_says_what_to_do(place: Place) -> None:
    place.server.limits = LokiLimits(max_chunk_age=60)
    sink = place.sink()
    sink.write(make_batch(["head"], start_ns=START_NS + 10 * HOUR))
    for minute in (50, 20):
        sink.write(make_batch([f"{minute}"], start_ns=START_NS + minute * 60 * 10**9))
    batch = make_batch(["0", "1", "day before"])
    batch.times[2] = START_NS - 20 * HOUR
    with pytest.raises(PartialError) as caught:
        sink.write(batch)
    assert [str(error) for error in caught.value.failed.values() if "out_of_order_window" in str(error)]
    stored = {record_id for record_id in place.server.ids() if record_id in batch.ids}
    assert {batch.ids[row] for row in caught.value.failed} | stored == set(batch.ids)


@pytest.mark.parametrize("seed", range(10))
def test_whatever_the_limits_each_record_is_stored_or_dead_lettered_for_its_age(tmp_path: Path, seed: int) -> None:
    """Unknown heads, narrow limits, lost answers, equal times, long lines: nothing is lost, nothing is read twice."""
    rng = random.Random(seed)
    limits = LokiLimits(
        max_line_size=rng.choice([300, 262_144]),
        reject_old_samples_max_age=rng.choice([9, 7 * 24]) * 3600,
        creation_grace_period=rng.choice([60, 600]),
        grpc_server_max_recv_msg_size=rng.choice([30_000, 4 << 20]),
        ingestion_burst=rng.choice([120_000, 6 << 20]),
    )
    place = Place(limits=limits, masks=rng.random() < 0.7, metadata_counts=rng.random() < 0.5)
    options = {"encoding": rng.choice(["json", "protobuf"]), "line": rng.choice(["raw", "json", "logfmt"])}
    levels = ["debug", "info", "warn", "error"]
    now = place.clock.time_ns()
    other = make_batch(["head"] * 4, start_ns=now - rng.choice([0, 2, 5]) * HOUR, step_ns=0, level=levels)
    place.sink().write(other)
    batches = []
    for number in range(5):
        count = rng.randint(1, 120)
        start = now - rng.choice([10, 4, 2, 1, 0]) * HOUR
        batch = make_batch(
            [rng.choice(["same", f"line {n}", "é" * 200, "long " * rng.choice([1, 200])]) for n in range(count)],
            level=[rng.choice(levels) for _ in range(count)],
            resource=[make_resource(container_id=rng.choice("ab")) for _ in range(count)],
            offset=number * 1_000_000,
        )
        batch.times = [start + rng.choice([0, n, rng.randrange(2 * HOUR), 59_900_000_000]) for n in range(count)]
        batches.append(batch)
    for _ in range(rng.randint(0, 4)):
        place.server.script(Reply(rng.choice([500, 503, 429])), stored=rng.random() < 0.5)
    delivered = Delivered(tmp_path, place, place.sink(**options), *batches)
    times = {record_id: at for batch in batches for record_id, at in zip(batch.ids, batch.times, strict=True)}
    found = [record for record in place.read(options) if record.id in times]
    read = [record.id for record in found]
    assert len(read) == len(set(read))
    assert set(read) | set(delivered.dead()) == set(times)
    assert set(read) & set(delivered.dead()) == set()
    assert {record.id: record.time_ns for record in found} == {one: times[one] for one in read}
    written = {record.id: record.message for batch in batches for record in batch.records()}
    assert {record.id: record.message for record in found} == {one: written[one] for one in read}
    age = int(limits.reject_old_samples_max_age) * 10**9
    assert all(not now - age + 3600 * 10**9 < times[one] < now for one in delivered.dead())
    place.close()


# What may share a push


def _pushes(place: Place) -> list[list[dict[str, str]]]:
    """The labels in each push."""
    return [
        [stream["stream"] for stream in json.loads(gzip.decompress(request.body))["streams"]]
        for request in place.server.requests
        if request.path.endswith("/push")
    ]


def test_streams_go_alone_until_they_are_known_then_small_parts_share_a_push(place: Place) -> None:
    place.clock.advance(-86_400)
    sink = place.sink()
    levels = ["info", "warn", "error"]
    sink.write(make_batch(["one"] * 3, level=levels))
    assert [len(push) for push in _pushes(place)] == [1, 1, 1]
    sink.write(make_batch(["two"] * 3, level=levels, start_ns=START_NS + 10**9))
    assert [len(push) for push in _pushes(place)][3:] == [3]
    # Much for one of them, which is then alone for a while.
    sink.write(make_batch(["three " * 10_000, "three", "three"], level=levels, start_ns=START_NS + 2 * 10**9))
    assert sorted(len(push) for push in _pushes(place)[4:]) == [1, 2]
    place.clock.advance(11)
    sink.write(make_batch(["four"] * 3, level=levels, start_ns=START_NS + 3 * 10**9))
    assert [len(push) for push in _pushes(place)][6:] == [3]
    # Idle for long, they may have left Loki's memory; and so they may after a failure.
    place.clock.advance(700)
    sink.write(make_batch(["five"] * 3, level=levels, start_ns=START_NS + 700 * 10**9))
    assert [len(push) for push in _pushes(place)][7:] == [1, 1, 1]
    place.server.script(Reply(500))
    with pytest.raises(RetryableError):
        sink.write(make_batch(["six"] * 3, level=levels, start_ns=START_NS + 701 * 10**9))
    sink.write(make_batch(["six"] * 3, level=levels, start_ns=START_NS + 701 * 10**9))
    assert [len(push) for push in _pushes(place)][10:] == [3, 1, 1, 1]
    assert place.server.count == 18


def test_records_that_could_be_late_for_another_writer_go_alone(place: Place) -> None:
    sink = place.sink()
    for step in range(2):  # a day behind the clock: any other writer may be up to date
        sink.write(make_batch(["x"] * 3, level=["info", "warn", "error"], start_ns=START_NS + step * 10**9))
    assert [len(push) for push in _pushes(place)] == [1] * 6


def test_refusal_in_a_shared_push_is_found_by_sending_each_stream_alone(place: Place, tmp_path: Path) -> None:
    place.clock.advance(-86_400)
    place.server.masks = False
    sink = place.sink()
    levels = ["info", "warn", "error"]
    sink.write(make_batch(["one"] * 3, level=levels))
    place.server.limits = LokiLimits(max_line_size=100)
    batch = make_batch(["short", "m" * 150, "short"], level=levels, start_ns=START_NS + 10**9)
    delivered = Delivered(tmp_path, place, sink, batch)
    assert delivered.dead() == {}
    assert [len(push) for push in _pushes(place)][3] == 3
    assert sorted(record.message for record in place.read(since=START_NS + 10**9)) == sorted(batch.raws)


# Rates and sizes


def test_limit_of_streams_parks_and_the_other_streams_are_delivered_when_it_is_raised(place: Place) -> None:
    place.server.limits = LokiLimits(max_global_streams_per_user=1)
    sink = place.sink()
    batch = make_batch(["a", "b"], level=["info", "warn"])
    with pytest.raises(PartialError) as caught:
        sink.write(batch)
    [(row, error)] = caught.value.failed.items()
    assert (row, type(error)) == (1, ParkedError)
    assert "max_global_streams_per_user" in str(error)
    place.server.limits = LokiLimits()
    sink.write(batch)
    assert place.server.messages() == ["a", "b"]


@pytest.mark.parametrize(("rate", "burst"), [(100_000, 200_000), (4 << 20, 200_000)])
def test_burst_that_no_push_fits_is_found_and_everything_delivered(tmp_path: Path, rate: int, burst: int) -> None:
    place = Place(limits=LokiLimits(ingestion_rate=rate, ingestion_burst=burst))
    batch = make_batch([f"{n} " + "r" * 1000 for n in range(600)])
    delivered = Delivered(tmp_path, place, place.sink(), batch)
    assert delivered.dead() == {}
    assert sorted(place.server.messages()) == sorted(batch.raws)
    assert len(delivered.waits) < 40
    place.close()


def test_pushes_grow_again_when_the_server_takes_more(place: Place, tmp_path: Path) -> None:
    place.server.limits = LokiLimits(ingestion_rate=100_000, ingestion_burst=100_000)
    sink = place.sink()
    Delivered(tmp_path / "1", place, sink, make_batch(["s" * 1000 for n in range(200)]))
    place.server.limits = LokiLimits()
    place.clock.advance(700)
    before = len(place.server.requests)
    Delivered(tmp_path / "2", place, sink, make_batch(["s" * 1000 for n in range(200)], start_ns=START_NS + 10**9))
    assert len(place.server.requests) - before == 1


def test_rate_of_a_stream_is_waited_for(tmp_path: Path) -> None:
    place = Place(limits=LokiLimits(per_stream_rate=100_000, per_stream_burst=300_000))
    batches = [make_batch(["q" * 1000 for _ in range(200)], start_ns=START_NS + n * 10**9) for n in range(4)]
    delivered = Delivered(tmp_path, place, place.sink(), *batches)
    assert delivered.dead() == {}
    assert place.server.count == 800
    assert delivered.waits
    place.close()


def test_message_that_is_too_large_inside_loki_is_split_at_once(tmp_path: Path) -> None:
    place = Place(limits=LokiLimits(grpc_server_max_recv_msg_size=60_000))
    batch = make_batch([f"{n} " + "g" * 500 for n in range(500)])
    place.sink().write(batch)
    assert place.server.messages() == batch.raws
    place.close()


def test_record_that_is_too_large_alone_is_dead_lettered(tmp_path: Path) -> None:
    place = Place(limits=LokiLimits(grpc_server_max_recv_msg_size=60_000))
    batch = make_batch(["small", "h" * 100_000, "small too"])
    delivered = Delivered(tmp_path, place, place.sink(), batch)
    assert list(delivered.dead()) == [batch.ids[1]]
    assert place.server.messages() == ["small", "small too"]
    place.close()


@pytest.mark.parametrize("encoding", ["json", "protobuf"])
def test_no_push_comes_near_what_loki_takes(place: Place, encoding: str) -> None:
    place.server.limits = LokiLimits(ingestion_burst=1 << 30, per_stream_burst=1 << 30)
    lines = ['"\\' * 100_000] * 30 + [str(n) for n in range(3000)]
    place.sink(encoding=encoding).write(make_batch(lines))
    assert all(request.headers["content-encoding"] in {"gzip", "snappy"} for request in place.server.requests)
    assert place.server.messages() == lines
    assert len(place.server.requests) > 8


# Equal lines


@pytest.mark.parametrize("metadata_counts", [True, False])
@pytest.mark.parametrize("encoding", ["json", "protobuf"])
def test_equal_lines_of_one_time_stay_distinct_and_are_replayed_to_the_same_place(
    encoding: str, metadata_counts: bool
) -> None:
    place = Place(metadata_counts=metadata_counts)
    sink = place.sink(encoding=encoding)
    resources = [make_resource(container_id=name) for name in "ab" for _ in range(3)]  # one stream, two containers
    batch = make_batch(["same"] * 6, step_ns=0, resource=resources)
    for _ in range(2):
        sink.write(batch)
    sink.write(batch.select([4]))
    sink.write(batch.select([5, 2]))
    found = place.read()
    assert sorted(record.id for record in found) == sorted(batch.ids)
    assert place.server.count == 6
    assert {record.time_ns for record in found} == {START_NS}
    place.close()


def test_equal_line_at_the_end_of_one_batch_and_the_start_of_the_next_is_two(tmp_path: Path) -> None:
    place = Place(metadata_counts=False)
    sink = place.sink()
    batch = make_batch(["a", "same", "same", "b"])
    batch.times = [START_NS, START_NS + 5, START_NS + 5, START_NS + 9]
    sink.write(batch.select([0, 1]))
    sink.write(batch.select([2, 3]))
    assert sorted(place.server.ids()) == sorted(batch.ids)
    place.close()


def test_order_read_is_that_of_the_records_own_times_then_ids(place: Place) -> None:
    batch = make_batch(["same"] * 5 + ["other"] * 5, step_ns=0)
    batch.times = [START_NS] * 5 + [START_NS + 2] * 5
    place.sink().write(batch)
    expected = sorted(zip(batch.times, batch.ids, strict=True))
    assert [(record.time_ns, record.id) for record in place.read()] == expected
    assert [(record.time_ns, record.id) for record in place.read(oldest_first=False)] == expected[::-1]


# Labels and metadata


def test_default_labels_are_few_and_the_rest_stands_beside_the_line(place: Place) -> None:
    batch = make_batch(["x"], level="warn", resource=make_resource(container_image_name="api:1"))
    place.sink().write(batch)
    [(labels, time_ns, line, metadata)] = place.server.entries()
    assert labels == {
        "job": "shipper", "service": "api", "container": "api-1", "stream": "stdout", "level": "warn", "host": "host-1",
        "service_name": "api",
    }  # fmt: skip
    assert (time_ns, line) == (batch.times[0], "x")
    assert metadata == {
        "id": batch.ids[0], "source": "docker", "container_id": batch.resources[0].attributes["container.id"],
        "container_image_name": "api:1", "detected_level": "warn",
    }  # fmt: skip


def test_labels_are_templates_and_an_empty_one_is_left_out(place: Place) -> None:
    options = {
        "labels": {"env": "prod", "who": "{service}@{host}", "image": "{container.image.name}", "log": "{source}"}
    }
    batch = make_batch(["x"], level="error")
    sink = place.sink(**options)
    assert not sink.wants_levels
    sink.write(batch)
    [(labels, _, _, _)] = place.server.entries()
    assert labels == {"env": "prod", "who": "api@host-1", "log": "docker", "service_name": "unknown_service"}
    [record] = place.read(options)
    assert (record.level, record.resource.source) == ("error", "docker")
    assert record.resource.attributes == batch.resources[0].attributes


def test_unparsed_batch_without_levels_says_none(place: Place) -> None:
    place.sink(labels={"job": "x"}).write(make_batch(["x"], parsed=False))
    assert "severity" not in place.server.entries()[0][3]["shipper"]


def test_severity_between_the_levels_comes_back(place: Place) -> None:
    batch = make_batch(["x", "y"])
    batch.severities = [10, 24]
    place.sink().write(batch)
    assert [record.severity for record in place.read()] == [10, 24]


RESOURCES = {
    "names that collide": Resource("docker", {
        "service.name": "api", "id": "1", "part": "2/3", "ns": "7", "shipper": "x", "source": "y", "level": "z",
        "job": "other", "service_name": "s", "container.id": "a", "container_id": "b", "container-id": "c",
        "detected_level": "no", "backfill": "n", "1st": "d", "": "e", "__x__": "f", "größe": "g", "empty": "",
    }),
    "many": Resource("docker", {f"container.label.l{n}": str(n) for n in range(300)}),
    "large": Resource("docker", {f"container.label.l{n}": "v" * 4000 for n in range(15)}),
    "long label": Resource("docker", {"service.name": "n" * 5000, "container.name": "ü" * 1500}),
    "bare": Resource("files", {}),
}  # fmt: skip


@pytest.mark.parametrize("encoding", ["json", "protobuf"])
@pytest.mark.parametrize("name", RESOURCES)
def test_resource_comes_back_whatever_it_is(place: Place, name: str, encoding: str) -> None:
    resource = RESOURCES[name]
    batch = make_batch(["x"], resource=resource)
    place.sink(encoding=encoding).write(batch)
    [record] = place.read()
    assert (record.resource.source, record.resource.attributes) == (resource.source, resource.attributes)
    assert record.id == batch.ids[0]


def test_resource_beyond_what_loki_can_hold_is_cut_and_that_is_logged(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    resource = Resource("docker", {"service.name": "api"} | {f"container.label.l{n}": "v" * 9000 for n in range(15)})
    place.sink().write(make_batch(["x"], resource=resource))
    [record] = place.read()
    assert record.resource.service == "api"
    assert any(value.endswith("…") for value in record.resource.attributes.values())
    assert "too large" in caplog.text


@pytest.mark.parametrize("kind", ["id", "none"])
def test_metadata_can_be_the_id_alone_or_nothing(kind: str) -> None:
    place = Place(limits=LokiLimits(allow_structured_metadata=kind != "none"))
    options = {"structured_metadata": kind}
    batch = make_batch(["one", "two"])
    place.sink(**options).write(batch)
    assert place.server.ids() == (batch.ids if kind == "id" else ["", ""])
    found = place.read(options)
    assert [record.message for record in found] == ["one", "two"]
    assert len({record.id for record in found}) == 2
    assert found[0].resource.service == "api"
    place.close()


def test_loki_that_allows_no_metadata_parks_and_says_so(place: Place) -> None:
    place.server.limits = LokiLimits(allow_structured_metadata=False)
    with pytest.raises(ParkedError, match="structured_metadata: id or none"):
        place.sink().write(make_batch(["x"]))


def test_lines_can_be_json_or_logfmt_for_lokis_own_parsers(place: Place) -> None:
    batch = make_batch(["it is"], attributes={"user_id": "42", "n": 7, "why": 'a "b"'}, raws=["raw"])
    place.sink(line="json").write(batch)
    place.sink(line="logfmt").write(make_batch(["it is"], attributes=batch.attributes, start_ns=START_NS + 1))
    assert place.server.messages() == [
        '{"message":"it is","attributes":{"user_id":"42","n":7,"why":"a \\"b\\""}}',
        'msg="it is" user_id="42" n=7 why="a \\"b\\""',
    ]


@pytest.mark.parametrize("form", ["json", "logfmt"])
def test_line_of_another_writer_is_a_message_as_it_is(place: Place, form: str) -> None:
    lines = ["plain text", '{"message": 1}', '{"a":1}', 'a=1 b="x', "msg=5", "a=b", '{"message":"m","attributes":{}} x']
    place.sink().write(make_batch(lines))
    assert [record.message for record in place.read({"line": form})] == lines


# Login, tenant, headers, TLS


def test_tenant_login_and_headers_are_sent_and_secrets_read_anew(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("one\n")
    place = Place(auth_enabled=True, login="Bearer two")
    options = {"tenant": "blue", "bearer_token_file": str(secret), "headers": {"X-Team": "red"}}
    sink = place.sink(**options)
    with pytest.raises(ParkedError, match="401"):
        sink.write(make_batch(["x"]))
    secret.write_text("two\n")
    sink.open()
    sink.write(make_batch(["x"]))
    request = place.server.requests[-1]
    assert (request.headers["x-scope-orgid"], request.headers["x-team"]) == ("blue", "red")
    assert [record.message for record in place.read(options)] == ["x"]
    assert place.read({**options, "tenant": "green"}) == []
    secret.unlink()
    with pytest.raises(ParkedError, match="bearer_token_file"):
        sink.open()
    place.close()


def test_basic_authentication_and_a_missing_tenant(tmp_path: Path) -> None:
    place = Place(auth_enabled=True, login="Basic MTIzOnB3")
    options = {"username": "123", "password": "pw"}
    with pytest.raises(ParkedError, match="no org id"):
        place.sink(**options).write(make_batch(["x"]))
    with pytest.raises(ParkedError, match="no org id"):
        place.read(options)
    place.sink(**options, tenant="t").write(make_batch(["x"]))
    assert place.server.count == 1
    place.close()


def test_tls_with_an_authority_of_ones_own(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.cert, pair.key)
    place = Place(tls=context)
    place.sink(ca_file=str(authority.cert)).write(make_batch(["x"]))
    assert [record.message for record in place.read({"ca_file": str(authority.cert)})] == ["x"]
    with pytest.raises(ParkedError, match="certificate is not accepted"):
        place.sink().write(make_batch(["y"]))
    place.close()


@pytest.mark.parametrize(
    ("endpoint", "path"),
    [
        ("{url}", "/loki/api/v1/push"),
        ("{url}/", "/loki/api/v1/push"),
        ("{url}/loki/api/v1/push", "/loki/api/v1/push"),
        ("{url}/proxy", "/proxy/loki/api/v1/push"),
        ("{url}/special/push", "/special/push"),
    ],
)
def test_endpoint_is_a_base_or_the_push_itself(place: Place, endpoint: str, path: str) -> None:
    sink = LokiSink(LokiConfig(type="loki", endpoint=endpoint.format(url=place.server.url)), clock=place.clock)
    sink.open()
    place.server.script(Reply(204))
    sink.write(make_batch(["x"]))
    assert place.server.requests[-1].path == path
    sink.close()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"endpoint": "loki:3100"}, "endpoint: not an http"),
        ({"labels": {"a-b": "x"}}, "'a-b' cannot be a label"),
        ({"labels": {"__x": "x"}}, "'__x' cannot be a label"),
        ({"labels": {"backfill": "x"}}, "cannot be a label"),
        ({"labels": {"a": "{servce}"}}, "is neither one of container, host"),
        ({"labels": {"a": "x{service"}}, "a brace without its partner"),
        ({"labels": {"a": "{service}"}}, "must always have a value"),
        ({"labels": {f"l{n}": "x" for n in range(15)}}, "15 labels; Loki takes 15, and one is kept"),
        ({"username": "u", "bearer_token": "t"}, "exclude each other"),
        ({"username": "u", "password": "p", "password_file": "f"}, "given twice"),
        ({"bearer_token": "p", "bearer_token_file": "f"}, "given twice"),
        ({"password": "p"}, "needs username"),
        ({"max_line_size": 100}, "max_line_size: from 1KiB"),
        ({"max_line_size": "4MiB"}, "max_line_size: from 1KiB"),
        ({"max_age": "0s"}, "leave it empty"),
        ({"out_of_order_window": "0s"}, "more than 0"),
        ({"timeout": "0s"}, "timeout: must be more"),
        ({"line": "xml"}, "line"),
        ({"encoding": "xml"}, "encoding"),
    ],
)
def test_bad_options_are_told(options: dict[str, Any], text: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=text.replace("[", r"\[")):
        msgspec.convert({"type": "loki", "endpoint": "http://loki:3100", **options}, LokiConfig)


def test_protobuf_without_its_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cramjam", None)
    with pytest.raises(ConfigError, match="cramjam"):
        LokiSink(LokiConfig(type="loki", endpoint="http://loki:3100", encoding="protobuf"))
    LokiSink(LokiConfig(type="loki", endpoint="http://loki:3100"))


# The two encodings say the same


@pytest.mark.parametrize("line", ["raw", "json", "logfmt"])
def test_both_encodings_store_the_same(line: str) -> None:
    stored = []
    for encoding in ("json", "protobuf"):
        place = Place()
        rng = random.Random(7)
        sink = place.sink(encoding=encoding, line=line)
        sink.write(random_batch(rng, 50, start_ns=START_NS))
        sink.write(make_batch(["same"] * 3, step_ns=0, resource=RESOURCES["names that collide"]))
        stored.append(place.server.entries())
        place.close()
    assert stored[0] == stored[1]
    assert len(stored[0]) == 53


# Reading


def test_pages_join_without_gap_or_double_in_both_directions(place: Place) -> None:
    place.server.limits = LokiLimits(max_entries_limit_per_query=50)
    # Ten entries stand at each nanosecond, so that pages end amid them.
    batch = make_batch([str(n) for n in range(1234)], level=["info", "warn"] * 617)
    batch.times = [START_NS + n // 10 for n in range(1234)]
    place.sink().write(batch)
    assert [record.id for record in place.read()] == [i for _, i in sorted(zip(batch.times, batch.ids, strict=True))]
    assert [record.id for record in place.read(oldest_first=False)] == [
        i for _, i in sorted(zip(batch.times, batch.ids, strict=True), reverse=True)
    ]
    queries = [request for request in place.server.requests if request.path.endswith("query_range")]
    assert {request.query["limit"] for request in queries} == {"5000", "50"}


def test_nanosecond_with_more_entries_than_a_page_is_told_and_not_passed_by(place: Place) -> None:
    place.server.limits = LokiLimits(max_entries_limit_per_query=20)
    batch = make_batch([str(n) for n in range(30)], step_ns=0)
    place.sink().write(batch)
    with pytest.raises(ParkedError, match="raise Loki's max_entries_limit_per_query"):
        place.read()


def test_time_bounds_are_half_open_to_the_nanosecond(place: Place) -> None:
    batch = make_batch(["a", "b", "c", "d"], step_ns=1)
    place.sink(line="json").write(batch)

    def read(**query: Any) -> list[str]:
        since, until = query["since"], query["until"]
        return [r.message for r in place.read({"line": "json"}, **query) if since <= r.time_ns < until]

    assert read(since=START_NS + 1, until=START_NS + 3) == ["b", "c"]
    assert read(since=START_NS + 1, until=START_NS + 3, limit=1, oldest_first=False) == ["c"]
    assert read(since=START_NS + 1, until=START_NS + 3, limit=1) == ["b"]


def test_years_are_asked_for_in_slices_that_the_server_takes() -> None:
    place = Place(limits=LokiLimits(reject_old_samples=False, max_query_length=200 * 3600))
    sink = place.sink(max_age="")
    for days in (900, 100, 29, 0):
        sink.write(make_batch([f"{days}"], start_ns=START_NS - days * DAY))
    assert [record.message for record in place.read()] == ["900", "100", "29", "0"]
    ranges = {
        int(request.query["end"]) - int(request.query["start"])
        for request in place.server.requests if request.path.endswith("query_range")
    }  # fmt: skip
    assert max(ranges) == 720 * HOUR
    assert min(ranges) <= 180 * HOUR
    place.close()


def _questions(place: Place) -> list[str]:
    return [request.query["query"] for request in place.server.requests if request.path.endswith("query_range")]


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("level:error", ['{job="shipper", level=~"error|"}']),
        ("level>=warn", ['{job="shipper", level=~"warn|error|fatal|"}']),
        ('service:"a.b" host:host-1', ['{job="shipper", service=~"a\\\\.b|", host=~"host-1|"}']),
        ('service:"" -level:info', ['{job="shipper"}']),
        ("service:api*", ['{job="shipper"}']),
        ("user_id:42 OR level:error", ['{job="shipper"}']),
        ("id:abc", ['{job="shipper"} | id="abc" or id=""']),
        ("42 é", ['{job="shipper"}']),
        (
            '"connection refused: 42"',
            [
                '{job="shipper"} |~ "connection|\\\\\\\\u00|\\\\x1b" |~ "refused|\\\\\\\\u00|\\\\x1b" | part=""',
                '{job="shipper"} | part!=""',
            ],
        ),
    ],
)
def test_what_is_pushed_down(place: Place, condition: str, expected: list[str]) -> None:
    place.read(condition=compile_condition(condition), since=START_NS)
    assert _questions(place) == expected


def test_search_finds_what_a_line_hides(place: Place) -> None:
    """Words in the message that are written otherwise in the line, or that two parts of a line share."""
    options = {"line": "json"}
    messages = [
        "timeout of payment", 'say "timeout" loud', "time\x1b[31mout", "timeout\nof", "Timeout", "nothing", "\x00timeout",
    ]  # fmt: skip
    place.sink(**options).write(make_batch(messages))
    place.sink().write(make_batch(['{"m": "\\u0074imeout"}', "esc tim\x1b[0meout"], start_ns=START_NS + 10**9))
    long = "x" * 262_144
    cut = long[:-23] + "timeout" + long  # astride the end of the first part
    place.sink(**options).write(make_batch([cut], start_ns=START_NS + 2 * 10**9))
    found = place.read(options, condition=compile_condition("timeout"))
    got = [record.message for record in found if "timeout" in record.message]
    assert got == [message for message in messages if "timeout" in message] + [cut]
    raw = [record.message for record in place.read(condition=compile_condition("timeout"), since=START_NS + 10**9)]
    assert raw[:2] == ['{"m": "\\u0074imeout"}', "esc tim\x1b[0meout"]


def test_pushed_down_questions_give_what_filtering_alone_gives(place: Place) -> None:
    rng = random.Random(11)
    words = ["timeout", "login", "größe", "a=b", '"quoted"', "x.y", "pay|ment", "[warn]"]
    services = ["api", "web", "we.b", "a|b", 'q"q', "größe", "back\\slash"]
    count = 300
    batch = make_batch(
        [" ".join(rng.choices(words, k=3)) for _ in range(count)],
        level=[rng.choice(["debug", "info", "warn", "error"]) for _ in range(count)],
        resource=[make_resource(rng.choice(services)) for _ in range(count)],
        attributes=[{"user_id": str(rng.randrange(5))} for _ in range(count)],
    )
    options = {"line": "json"}
    place.sink(**options).write(batch)
    terms = [
        *(json.dumps(word, ensure_ascii=False) for word in words), *(f"level:{x}" for x in ("info", "error")), "level>=warn",
        *(f"service:{json.dumps(name, ensure_ascii=False)}" for name in services), "user_id:3", f"id:{batch.ids[7]}",
        "-level:info", "service:(api web)",
    ]  # fmt: skip
    for _ in range(60):
        text = " ".join(rng.sample(terms, rng.randint(1, 3)))
        condition = compile_condition(text)
        expected = [record.id for record in batch.records() if condition.matches(record)]
        found = [
            record.id for record in place.read(options, condition=condition, since=START_NS, until=START_NS + HOUR)
            if condition.matches(record)
        ]  # fmt: skip
        assert found == expected, text


def test_what_was_written_under_other_labels_is_found_too(place: Place) -> None:
    batch = make_batch(["x", "y"], level=["error", "info"])
    place.sink(labels={"job": "shipper"}).write(batch)
    for text in ("level:error", "service:api level:error"):
        condition = compile_condition(text)
        assert [r.message for r in place.read(condition=condition) if condition.matches(r)] == ["x"]


def test_entries_of_another_client_are_read_too_and_get_an_id(place: Place) -> None:
    place.sink(structured_metadata="none").write(make_batch(["foreign", "foreign too"]))
    found = place.read()
    again = place.read(condition=compile_condition(f"id:{found[0].id}"))
    assert [record.message for record in found] == ["foreign", "foreign too"]
    assert found[0].id in {record.id for record in again}
    assert len(found[0].id) == 36


def test_double_that_loki_kept_is_read_once(place: Place) -> None:
    sink = place.sink()
    batch = make_batch([f"{n} " + "d" * 3000 for n in range(300)])  # three blocks
    sink.write(batch)
    place.server.restart()
    sink.write(batch)
    assert place.server.count == 600
    assert [record.id for record in place.read()] == batch.ids


def test_what_the_source_knows_of_a_raw_line_is_kept(place: Place) -> None:
    batch = make_batch(["one", "two", "three"], parsed=False)
    batch.marks = {1: {"log.record.part": 2}}
    place.sink().write(batch)
    assert [record.attributes for record in place.read()] == [{}, {"log.record.part": 2}, {}]


def test_raw_lines_are_parsed_when_they_are_queried(tmp_path: Path) -> None:
    """From Docker's file through the daemon to Loki and back on the command line."""
    containers = tmp_path / "containers" / ("a" * 64)
    containers.mkdir(parents=True)
    (containers / "config.v2.json").write_text(
        json.dumps({"ID": "a" * 64, "Name": "/api", "Config": {"Image": "api:1"}})
    )
    stamp = datetime.fromtimestamp(time.time() - 60, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    rows = [
        {"level": "error", "message": "connection refused", "user_id": 42},
        {"level": "info", "message": "connection made", "user_id": 42},
        {"level": "error", "message": "connection lost", "user_id": 7},
    ]
    lines = [
        json.dumps({"log": json.dumps(row) + "\n", "stream": "stdout", "time": f"{stamp}.{n:09d}Z"})
        for n, row in enumerate(rows)
    ]
    (containers / f"{'a' * 64}-json.log").write_text("\n".join([*lines, ""]))
    with LokiServer() as server:
        config = {
            "sources": {"docker": {"type": "docker", "path": str(tmp_path / "containers")}}, "sinks": {"out": server.sink()},
        }  # fmt: skip
        daemon = Daemon(tmp_path / "daemon", config)
        assert daemon.once(timeout=60).code == 0, daemon.log
        assert {stream["level"] for stream in server.streams} == {"error", "info"}
        command = [sys.executable, "-m", "shipper", "query", "--config", str(daemon.path), "-o", "json"]
        found = subprocess.run(
            [*command, "user_id:42 level:error connection"], capture_output=True, text=True, timeout=60, check=False
        )
    assert found.returncode == 0, found.stderr
    [record] = map(json.loads, found.stdout.splitlines())
    assert (record["level"], record["message"], record["attributes"]) == (
        "error",
        "connection refused",
        {"user_id": 42},
    )
    assert record["resource"]["container.name"] == "api"


def test_answer_that_is_not_lokis_and_one_that_says_later(place: Place) -> None:
    place.server.script(Reply(200, b"<html>"), Reply(504), Reply(401, b"no"))
    with pytest.raises(RetryableError, match="not Loki's"):
        place.read()
    with pytest.raises(RetryableError):
        place.read()
    with pytest.raises(ParkedError):
        place.read()


# Findings


def _verdicts(sink: LokiSink) -> dict[str, str]:
    return {finding.what: finding.verdict for finding in sink.examine()}


def test_examine_finds_a_good_server_good_and_writes_nothing(place: Place) -> None:
    place.server.clock = time.time_ns
    assert _verdicts(place.sink()) == {
        "reachable": "ok", "tls": "warn", "login": "ok", "clock": "ok", "rights": "ok", "limits": "ok",
    }  # fmt: skip
    place.sink(encoding="protobuf").healthcheck()
    assert place.server.streams == []


def test_examine_tells_login_rights_and_network_apart(place: Place, tmp_path: Path) -> None:
    place.server.login = "Bearer x"
    assert _verdicts(place.sink())["login"] == "fail"
    with pytest.raises(ParkedError):
        place.sink().healthcheck()
    place.server.login = ""
    place.server.script(Reply(422), Reply(403, b"write only"))
    assert _verdicts(place.sink())["rights"] == "warn"
    missing = LokiSink(place.config(bearer_token_file=str(tmp_path / "none")))
    assert _verdicts(missing) == {"login": "fail"}
    sink = place.sink()
    place.server.close()
    assert _verdicts(sink) == {"reachable": "fail"}
    place.server = LokiServer()
