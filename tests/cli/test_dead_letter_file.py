"""The dead letter file: durable, private, whole whatever happens around it."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from shipper.commands.dead_letters import _Retry
from shipper.delivery import letters as letters_module
from shipper.delivery.deadletter import DeadLetters, FullError
from shipper.errors import ParkedError, PartialError, PermanentError, RetryableError, SinkError, StateError
from shipper.record import Batch, Resource
from shipper.sink import Limits, Sink
from shipper.testing.filesystem import Crash, FaultyFileSystem

RESOURCE = Resource("docker", {"container.name": "api", "service.name": "api"})


def make(*messages: str, parsed: bool = True, start: int = 0) -> Batch:
    count = len(messages)
    return Batch(
        times=[1_795_388_178_000_000_000 + start + i for i in range(count)],
        stamps=[1_795_388_178_000_000_000 + start + i for i in range(count)],
        hashes=[(1 << 127) + start + i for i in range(count)],
        raws=list(messages),
        resources=[RESOURCE] * count,
        offsets=[start + i for i in range(count)],
        severities=[17] * count if parsed else None,
        messages=list(messages) if parsed else None,
        attributes=[{"n": i, "deep": {"x": [1, None]}} for i in range(count)] if parsed else None,
    )


def refused(count: int) -> list[SinkError]:
    return [PermanentError(f"bad value {i}", code="1366") for i in range(count)]


@pytest.fixture
def letters(tmp_path: Path) -> DeadLetters:
    return DeadLetters(tmp_path / "dead-letter" / "mysql.jsonl")


@pytest.mark.parametrize("parsed", [True, False])
def test_what_comes_back_equals_what_was_refused(letters: DeadLetters, parsed: bool) -> None:
    batch = make("a", "b\nc\x00 \u20ac", parsed=parsed)
    letters.append(batch, refused(2), "mysql")
    (back,) = letters.batches()
    assert list(back.ids) == list(batch.ids)
    for column in ("times", "stamps", "hashes", "raws", "offsets", "severities", "messages", "attributes"):
        assert getattr(back, column) == getattr(batch, column), column
    assert [(r.source, r.attributes) for r in back.resources] == [("docker", RESOURCE.attributes)] * 2
    assert back.resources[0] is back.resources[1]
    first, second = letters.entries()
    assert (first.reason, first.code, first.sink, first.attempts) == ("bad value 0", "1366", "mysql", 1)
    assert second.reason == "bad value 1"


def test_values_no_encoder_likes_survive(letters: DeadLetters) -> None:
    """Half surrogates and huge integers are refused by backends; they must not be refused here as well."""
    batch = make("half \ud800")
    batch.attributes = [{"big": 2**80}]
    letters.append(batch, refused(1), "mysql")
    (back,) = letters.batches()
    assert back.messages == ["half \ud800"]
    assert back.attributes == [{"big": 2**80}]


def test_file_and_directory_are_private(letters: DeadLetters) -> None:
    letters.append(make("a", "b"), refused(2), "mysql")
    letters.remove([make("a").ids[0]])
    assert letters.path.stat().st_mode & 0o777 == 0o600
    assert letters.path.parent.stat().st_mode & 0o777 == 0o700


def test_nothing_there_is_empty(letters: DeadLetters) -> None:
    assert list(letters.entries()) == []
    assert letters.count == letters.damaged == letters.remove(["x"]) == 0
    assert not letters.path.exists()


def test_torn_line_is_skipped_ended_and_kept(letters: DeadLetters) -> None:
    letters.append(make("a"), refused(1), "mysql")
    with letters.path.open("ab") as file:
        file.write(b'{"id": "torn')
    assert [entry.raw for entry in letters.entries()] == ["a"]
    assert (letters.count, letters.damaged) == (1, 1)
    letters.append(make("b", start=1), refused(1), "mysql")
    assert [entry.raw for entry in letters.entries()] == ["a", "b"]
    letters.remove([make("a").ids[0]])
    assert [entry.raw for entry in letters.entries()] == ["b"]
    assert b'{"id": "torn\n' in letters.path.read_bytes()


def test_same_record_twice_counts_once_with_its_newest_reason(letters: DeadLetters) -> None:
    letters.append(make("a"), [PermanentError("old")], "mysql")
    letters.append(make("a"), [PermanentError("new")], "mysql")
    assert [entry.reason for entry in letters.entries()] == ["new"]
    assert letters.count == 1


def test_settle_forgets_and_notes_the_new_attempt(letters: DeadLetters) -> None:
    batch = make("a", "b", "c")
    letters.append(batch, refused(3), "mysql")
    gone = letters.settle({batch.ids[0]}, {batch.ids[1]: PermanentError("still bad", code="9")})
    assert gone == 1
    assert [(e.raw, e.reason, e.code, e.attempts) for e in letters.entries()] == [
        ("b", "still bad", "9", 2),
        ("c", "bad value 2", "1366", 1),
    ]
    letters.remove(batch.ids)
    assert not letters.path.exists()


def test_batches_are_bounded_and_never_mix_parsed_with_unparsed(letters: DeadLetters) -> None:
    letters.append(make("a", "b", "c"), refused(3), "x")
    letters.append(make("d", parsed=False, start=3), refused(1), "x")
    assert [(len(batch), batch.parsed) for batch in letters.batches(records=2)] == [(2, True), (1, True), (1, False)]


def test_full_disk_is_a_state_error_and_leaves_no_trace(letters: DeadLetters, monkeypatch: pytest.MonkeyPatch) -> None:
    letters.append(make("a"), refused(1), "mysql")
    before = letters.path.read_bytes()
    real = os.write
    calls = []

    def short_then_full(file: int, data: bytes) -> int:
        calls.append(len(data))
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(file, bytes(data)[:20])

    monkeypatch.setattr(os, "write", short_then_full)
    with pytest.raises(StateError, match="No space left on device; the file is as it was") as raised:
        letters.append(make("b", start=1), refused(1), "mysql")
    monkeypatch.undo()
    assert str(letters.path) in str(raised.value)
    assert letters.path.read_bytes() == before


def test_real_full_disk(tmp_path: Path) -> None:
    letters = DeadLetters(tmp_path / "full.jsonl")
    letters.path.symlink_to("/dev/full")
    with pytest.raises(StateError, match="No space left on device"):
        letters.append(make("a"), refused(1), "mysql")


def test_append_beside_a_rewrite_loses_nothing(letters: DeadLetters) -> None:
    """A daemon in another process appends while this one removes what it retried."""
    script = """
import sys
from pathlib import Path
from shipper.delivery import letters as letters_module
from shipper.delivery.deadletter import DeadLetters, FullError
from shipper.errors import PermanentError
from shipper.record import Batch, Resource
letters = DeadLetters(Path(sys.argv[1]))
for i in range(1000, 1100):
    batch = Batch(times=[i], stamps=[i], hashes=[i], raws=["new"], resources=[Resource("s", {})], offsets=[i])
    letters.append(batch, [PermanentError("x")], "mysql")
"""
    old = make(*("old" for _ in range(60)))
    letters.append(old, refused(60), "mysql")
    child = subprocess.Popen([sys.executable, "-c", script, str(letters.path)])
    threads = [
        threading.Thread(target=lambda part=part: [letters.remove([identity]) for identity in part])
        for part in (old.ids[:30], old.ids[30:])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert child.wait(60) == 0
    assert sorted(entry.offset for entry in letters.entries()) == list(range(1000, 1100))
    assert letters.damaged == 0


class Picky(Sink):
    """Refuses what says so, in the way it says."""

    limits = Limits(records=4)

    def __init__(self, *, partial: bool = False) -> None:
        self.partial = partial
        self.taken: list[str] = []

    def open(self) -> None:
        pass

    def close(self) -> None:
        pass

    def write(self, batch: Batch) -> None:
        if any(raw == "away" for raw in batch.raws):
            raise ParkedError("wrong password", code="1045")
        bad = {i: PermanentError(f"no {raw}", code="7") for i, raw in enumerate(batch.raws) if raw.startswith("bad")}
        if bad and not self.partial:
            raise PermanentError("something in there")
        self.taken += [raw for raw in batch.raws if not raw.startswith("bad")]
        if bad:
            raise PartialError(bad)


@pytest.mark.parametrize("partial", [True, False])
def test_retry_takes_all_but_the_guilty(letters: DeadLetters, partial: bool) -> None:
    letters.append(make("a", "bad1", "b", "c", "d", "bad2"), refused(6), "picky")
    attempt = _Retry(Picky(partial=partial), letters)
    attempt.run()
    assert (attempt.taken, attempt.refused) == (4, 2)
    assert sorted(attempt._sink.taken) == ["a", "b", "c", "d"]  # type: ignore[attr-defined]
    assert [(entry.raw, entry.attempts) for entry in letters.entries()] == [("bad1", 2), ("bad2", 2)]
    assert next(letters.entries()).reason == ("no bad1" if partial else "something in there")


def test_retry_keeps_what_it_could_not_try(letters: DeadLetters) -> None:
    letters.append(make("a", "b", "c", "d", "e", "away"), refused(6), "picky")
    attempt = _Retry(Picky(), letters)
    with pytest.raises(RetryableError, match="wrong password"):
        attempt.run()
    assert attempt.taken == 4
    assert [(entry.raw, entry.attempts) for entry in letters.entries()] == [("e", 1), ("away", 1)]


def test_entries_are_one_json_object_a_line(letters: DeadLetters) -> None:
    letters.append(make("a"), refused(1), "mysql")
    (line,) = letters.path.read_text().splitlines()
    assert set(json.loads(line)) == {
        *("id", "time", "stamp", "hash", "severity", "message", "attributes", "raw", "resource", "offset"),
        *("sink", "reason", "code", "when", "attempts"),
    }


# Much of it: sealed, bounded, counted


def flood(letters: DeadLetters, records: int, *, at_once: int = 500, sink: str = "loki") -> list[str]:
    """Append so many records of some 300 bytes; give their raws."""
    raws = []
    for start in range(0, records, at_once):
        messages = [f"{number} " + "the quick brown fox " * 5 for number in range(start, start + at_once)]
        letters.append(make(*messages, start=start), refused(at_once), sink)
        raws += messages
    return raws


def test_many_letters_are_compressed_and_all_come_back_in_order(letters: DeadLetters) -> None:
    raws = flood(letters, 20_000)
    plain = sum(len(line) for part in letters.parts() for line in letters._lines(part))
    assert letters.size < plain / 8
    assert letters.path.stat().st_size < 2 << 20 if letters.path.exists() else True
    assert [entry.raw for entry in letters.entries()] == raws
    assert (letters.count, letters.damaged) == (20_000, 0)
    assert [raw for batch in letters.batches(records=700) for raw in batch.raws] == raws
    for part in letters.parts():
        assert part.stat().st_mode & 0o777 == 0o600
        assert part.parent.stat().st_mode & 0o777 == 0o700


def test_counting_many_letters_reads_only_the_newest(letters: DeadLetters, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that was asked for its status once held every id there was."""
    flood(letters, 20_000)
    decoded = []
    decode = letters_module.decode
    monkeypatch.setattr(letters_module, "decode", lambda line: decoded.append(1) or decode(line))
    assert DeadLetters(letters.path).count == 20_000
    assert len(decoded) < 4_000


def test_a_file_of_an_older_version_is_read_and_then_sealed(letters: DeadLetters) -> None:
    older = DeadLetters(letters.path)
    older._seal_at = 1 << 40
    raws = flood(older, 5_000)
    assert letters.path.stat().st_size > 1 << 20
    assert (letters.count, [entry.raw for entry in letters.entries()]) == (5_000, raws)
    letters.append(make("new", start=9_000), refused(1), "loki")
    assert not letters.path.exists()
    assert [entry.raw for entry in letters.entries()] == [*raws, "new"]


def test_a_crash_between_sealing_and_removing_doubles_nothing(letters: DeadLetters, tmp_path: Path) -> None:
    """After each operation in turn the process dies; every letter is there once."""
    flood(letters, 2_000)
    dead = 0
    for nth in range(1, 12):
        place = tmp_path / str(nth) / "loki.jsonl"
        before = DeadLetters(place)
        before._seal_at = 1 << 40
        raws = flood(before, 1_000)
        fs = FaultyFileSystem(crash_after=nth)
        crashing = DeadLetters(place, fs=fs)
        crashing._seal_at = 1
        try:
            crashing.append(make("last", start=5_000), refused(1), "loki")
        except Crash:
            dead += 1
        after = DeadLetters(place)
        after.append(make("later", start=6_000), refused(1), "loki")
        found = [entry.raw for entry in after.entries()]
        assert [raw for raw in found if raw != "last"] == [*raws, "later"], nth
        assert found.count("last") <= 1
    assert dead >= 4


def test_at_the_limit_nothing_is_dropped_and_the_error_says_what_to_do(tmp_path: Path) -> None:
    letters = DeadLetters(tmp_path / "d" / "loki.jsonl", limit=1 << 20)
    with pytest.raises(FullError, match=r"1 MiB.*shipper dead-letters retry --sink loki") as raised:
        flood(letters, 200_000)
    assert "shipper dead-letters drop --sink loki" in str(raised.value)
    assert letters.size <= 1 << 20
    count = letters.count
    assert count > 10_000
    assert [entry.offset for entry in letters.entries()] == list(range(count))
    assert letters.drop() == count
    letters.append(make("fits again"), refused(1), "loki")


def test_with_drop_oldest_the_newest_stay_and_every_other_is_counted(tmp_path: Path) -> None:
    dropped: list[int] = []
    letters = DeadLetters(tmp_path / "d" / "loki.jsonl", limit=1 << 20, drop_oldest=True, on_dropped=dropped.append)
    flood(letters, 30_000)
    kept = [entry.offset for entry in letters.entries()]
    assert kept[-1] == 29_999
    assert kept == list(range(30_000 - len(kept), 30_000))
    assert sum(dropped) + len(kept) == 30_000
    assert letters.size <= 1 << 20


def test_one_flipped_byte_in_a_sealed_part_costs_no_more_than_that_part(letters: DeadLetters) -> None:
    raws = flood(letters, 10_000)
    first, second, *_ = letters.parts()
    data = bytearray(first.read_bytes())
    data[len(data) // 2] ^= 0xFF
    first.write_bytes(data)
    found = [entry.raw for entry in letters.entries()]
    after = letters_module.read_seal(first).records
    assert found[-(10_000 - after) :] == raws[after:]
    assert second.exists()
    letters.settle([entry.id for entry in letters.entries(second)], part=second)
    assert first.read_bytes() == bytes(data), "what cannot be read is left as it is"


@pytest.mark.parametrize("kind", ["deep", "surrogate", "keys"])
def test_a_record_that_trips_every_encoder_is_kept_with_its_raw_line(letters: DeadLetters, kind: str) -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    attributes = {"deep": {"n": deep}, "surrogate": {"a\ud800": "\udfff"}, "keys": {"x": {(1, 2): object()}}}[kind]
    batch = make("before", "the line", "after")
    batch.attributes = [{"n": 1}, attributes, {"n": 2}]
    letters.append(batch, refused(3), "mysql")
    assert [(entry.raw, entry.message) for entry in letters.entries()] == [
        ("before", "before"),
        ("the line", "the line"),
        ("after", "after"),
    ]
    back = [one for batch in letters.batches() for one in batch.attributes or []]
    assert (back[0], back[2]) == ({"n": 1}, {"n": 2})
    if kind == "deep":
        assert "RecursionError" in back[1]["shipper.fault"]


def test_files_are_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        letters = DeadLetters(tmp_path / "state" / "dead-letter" / "loki.jsonl")
        flood(letters, 5_000)
        letters.append(make("x", start=9_000), refused(1), "loki")
    finally:
        os.umask(before)
    for path in (tmp_path / "state").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


class Whole(Sink):
    """Takes requests of two records, and refuses a request with "bad" in it as a whole without saying which."""

    limits = Limits(records=100)

    def __init__(self) -> None:
        self.taken: list[str] = []

    def open(self) -> None:
        pass

    def close(self) -> None:
        pass

    def write(self, batch: Batch) -> None:
        together = []
        for start in range(0, len(batch), 2):
            rows = range(start, min(start + 2, len(batch)))
            if any(batch.raws[row] == "bad" for row in rows):
                together.append((tuple(rows), PermanentError("400")))
            else:
                self.taken += [batch.raws[row] for row in rows]
        if together:
            raise PartialError({}, together=together)


def test_retry_bisects_what_was_refused_together(letters: DeadLetters) -> None:
    """Six letters went out in three requests, one was refused, all six counted as taken, and the file was gone."""
    letters.append(make("a", "b", "c", "bad", "d", "e"), refused(6), "otlp")
    sink = Whole()
    attempt = _Retry(sink, letters)
    attempt.run()
    assert sorted(sink.taken) == ["a", "b", "c", "d", "e"]
    assert (attempt.taken, attempt.refused) == (5, 1)
    assert [(entry.raw, entry.reason) for entry in letters.entries()] == [("bad", "400")]


@pytest.mark.parametrize("raised", [RecursionError, MemoryError, OverflowError, RuntimeError])
def test_retry_survives_whatever_a_record_makes_the_sink_raise(letters: DeadLetters, raised: type[Exception]) -> None:
    class Tripping(Whole):
        def write(self, batch: Batch) -> None:
            if "bad" in batch.raws:
                raise raised
            super().write(batch)

    letters.append(make("a", "bad", "c"), refused(3), "x")
    attempt = _Retry(Tripping(), letters)
    attempt.run()
    assert (attempt.taken, attempt.refused) == (2, 1)
    assert [entry.raw for entry in letters.entries()] == ["bad"]


def test_retry_of_many_sends_each_once_and_leaves_what_an_interruption_left(letters: DeadLetters) -> None:
    raws = flood(letters, 9_000)
    sink = Whole()

    class Away(Whole):
        def write(self, batch: Batch) -> None:
            if len(self.taken) >= 4_000:
                raise ParkedError("wrong password")
            super().write(batch)

    away = Away()
    with pytest.raises(ParkedError):
        _Retry(away, letters).run()
    assert letters.count == 9_000 - len(away.taken)
    _Retry(sink, letters).run()
    assert away.taken + sink.taken == raws
    assert letters.parts() == []
