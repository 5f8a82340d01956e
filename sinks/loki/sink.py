"""The Loki sink: which records go into which push, and what is made of the answers.

An ingester's refusal of any stream but the last of a push is answered with 204 (grafana/loki, pkg/ingester/instance.go).
So a stream goes alone, and only streams in which nothing can be refused share a push: they took something lately and so
exist, get little and so stay under the stream's rate, and get nothing that could be late for any other writer's records.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from email.utils import parsedate_to_datetime
from itertools import groupby
from operator import add
from typing import TYPE_CHECKING, Any, ClassVar, cast

from shipper.clock import SystemClock
from shipper.errors import ConfigError, ParkedError, PermanentError, RetryableError, SinkError
from shipper.record import pick
from shipper.render import lengths, span
from shipper.sink import Finding, Limits, Sink, SinkConfig
from shipper.units import parse_duration, parse_size
from sinks import _http
from sinks._outcome import Outcome
from sinks.loki import encode, faults, lines
from sinks.loki.config import BACKFILL, LokiConfig
from sinks.loki.encode import Entry, Run
from sinks.loki.streams import States

if TYPE_CHECKING:
    from shipper.clock import Clock
    from shipper.record import Batch
    from sinks.loki.encode import Pairs

#: Bytes of a push before compression that are aimed at, and the most: Loki's own messages may have 4 MiB
#: (grpc_server_max_recv_msg_size), and a JSON push is never smaller than the message that Loki makes of it.
PUSH_BYTES, MOST_BYTES = 1 << 20, 3_500_000
#: Bytes up to which a stream's part shares a push with others.
SMALL_BYTES = 32 << 10
#: Seconds a record may be ahead of our clock (Loki's creation_grace_period).
AHEAD = 600
#: Seconds by which the clocks may seem to differ and be the same.
SAME = 5
#: Seconds for which pushes stay small once Loki found one too large, the least they become then, and the rate refusals
#: in a row that count as one: a push above the tenant's burst is never taken, and the answer does not tell the burst.
REDUCED_FOR, LEAST_BYTES, RATE_REFUSALS = 600.0, 64 << 10, 3
#: Records whose time was moved that are remembered, so that they go to the same place when they are sent again.
MOVED = 10_000
#: Bytes below which a server's limit for lines is not believed.
LEAST_LINE = 64
_SECOND = 1_000_000_000
#: An empty push: refused as such by Loki 3, taken by older ones, stored by none; after login and tenant were accepted.
_NOTHING = b'{"streams":[]}'
_NOTHING_IS_FINE = frozenset([204, 422])


class _PushState:
    """What is under way of one batch: its outcome, and the rows whose lines must be cut shorter.

    A row in several parts fails once, whatever becomes of the others.
    """

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.outcome = Outcome(len(batch))
        self.long: set[int] = set()
        self._failed: set[int] = set()

    def refuse(self, row: int, error: SinkError) -> None:
        """One row failed by itself."""
        self.fail_rows([row], error)

    def fail(self, runs: list[Run], error: SinkError) -> None:
        """A whole push failed."""
        self.fail_rows(list(dict.fromkeys(row for run in runs for row in run.rows)), error)

    def fail_rows(self, rows: list[int], error: SinkError) -> None:
        """Note an error for those of the rows that have none."""
        rows = [row for row in rows if row not in self._failed]
        self._failed.update(rows)
        if rows or isinstance(error, RetryableError):
            self.outcome.fail(rows, error)


class LokiSink(Sink):
    """Pushes batches to Loki."""

    config: ClassVar[type[SinkConfig]] = LokiConfig
    limits = Limits(records=10_000, bytes=2 << 20)

    def __init__(self, config: LokiConfig, *, clock: Clock | None = None) -> None:
        self._config = config
        self._clock = clock or SystemClock()
        self._what = f"loki {config.base}"
        self._client = _http.Client(config.base, config, what=self._what)
        self._headers: dict[str, str] = {}
        self._streams = encode.Streams(config)
        self._lines = lines.writer(config.line)
        self._ids = config.structured_metadata != "none"
        self._most_line = parse_size(config.max_line_size)
        self.max_age = parse_duration(config.max_age) if config.max_age else None
        self._max_age = None if self.max_age is None else int(self.max_age * _SECOND)
        self._window = int(parse_duration(config.out_of_order_window) * _SECOND)
        self._states = States(self._window)
        self._moved: OrderedDict[str, int] = OrderedDict()
        self._max_push_bytes, self._reduced_at = PUSH_BYTES, float("-inf")
        self._rate_refusals = 0
        # Nanoseconds by which Loki's clock is ahead of ours, which its limits are held by; None until it has told.
        self._skew: int | None = None
        self._date = ""
        self._is_json = config.encoding == "json"
        self._body = encode.json_body if self._is_json else _snappy()
        self.wants_parse = config.line != "raw"
        self.wants_levels = config.levels

    def open(self) -> None:
        """Read the secrets. Nothing is created at Loki. Raises ParkedError when a secret cannot be read."""
        kind = ("application/json", "gzip") if self._is_json else ("application/x-protobuf", "snappy")
        self._headers = {"Content-Type": kind[0], "Content-Encoding": kind[1], **self._config.authorization()}

    def healthcheck(self) -> None:
        """Push nothing. Raises SinkError when Loki would not take anything from us."""
        self.open()
        answer = self._push_nothing()
        if answer.status not in _NOTHING_IS_FINE:
            raise _http.refusal(answer, self._what)

    def examine(self) -> Iterator[Finding]:
        """See `Sink.examine`."""
        try:
            self.open()
        except ParkedError as error:
            yield Finding("login", "fail", str(error), "write the secret into the file that the option names")
            return
        found = list(_http.examine(self._client, self._push_nothing, fine=_NOTHING_IS_FINE))
        yield from found
        if any(finding.verdict == "fail" and finding.what in {"reachable", "tls"} for finding in found):
            return
        yield from self._examine_reading()
        age = f"no older than {self._config.max_age}" if self._config.max_age else "of any age"
        yield Finding(
            "limits", "ok", f"as configured here, since Loki does not tell its own: lines to {self._config.max_line_size},"
            f" records {age} and at most {self._config.out_of_order_window} behind the newest of their stream",
        )  # fmt: skip

    def _examine_reading(self) -> Iterator[Finding]:
        try:
            answer = self._client.request("GET", "/loki/api/v1/labels", headers=self._config.authorization())
        except SinkError as error:
            yield Finding("rights", "warn", f"cannot read: {error}", "let its account read, if you want to query it")
            return
        if answer.status == 200:
            yield Finding("rights", "ok", "it may read, too")
        else:
            reason = _http.refusal(answer, self._what)
            yield Finding("rights", "warn", f"cannot read: {reason}", "let its account read, if you want to query it")

    def write(self, batch: Batch) -> None:
        """Push the batch. Raises SinkError; see `sinks.loki.faults`."""
        progress = _PushState(batch)
        rows: Sequence[int] = range(len(batch))
        while rows:
            queue = deque(self._pushes(self._runs(progress, rows)))
            while queue:
                runs = queue.popleft()
                if progress.outcome.stopped is not None:
                    progress.fail(runs, progress.outcome.stopped)
                    continue
                queue.extendleft(reversed(self._send(runs, progress)))
            rows, progress.long = sorted(progress.long), set()
            if progress.outcome.stopped is not None:
                progress.fail_rows(list(rows), progress.outcome.stopped)
                break
        progress.outcome.close()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    # What goes where

    def _runs(self, progress: _PushState, rows: Sequence[int]) -> Iterator[list[Run]]:
        """Sort rows of the batch into streams; each comes as one list of runs."""
        batch = progress.batch
        streams: dict[Pairs, list[Run]] = defaultdict(list)
        texts, ids, times = self._lines(batch), batch.ids, batch.times
        for members in _group_rows(batch, rows):
            severity = None if batch.severities is None else batch.severities[members[0]]
            labels, metadata = self._streams.of(batch.resources[members[0]], severity)
            marks = {} if not batch.marks or self.wants_parse else _source_marks(batch.marks, members)
            if len(members) == len(batch):
                run = Run(labels, metadata, members, times, texts, ids, marks)
            else:
                run = Run(
                    labels, metadata, members, pick(times, members), pick(texts, members), pick(ids, members), marks
                )
            streams[labels].append(run)
        bounds = self._bounds()
        for labels, runs in streams.items():
            if self._is_plain(labels, runs, bounds):
                yield runs
            else:
                entries = [entry for run in runs for entry in run.entries()]
                yield from self._assign_streams(self._refuse_by_age(entries, bounds, progress))

    def _bounds(self) -> tuple[int, int]:
        """Give the oldest and the newest time that Loki takes now, by its own clock as far as that is known."""
        now = self._now()
        return 0 if self._max_age is None else now - self._max_age, now + AHEAD * _SECOND

    def _now(self) -> int:
        return self._clock.time_ns() + (self._skew or 0)

    def _is_plain(self, labels: Pairs, runs: list[Run], bounds: tuple[int, int]) -> bool:
        """Tell whether no entry of a stream needs anything of its own: the common case, without an object per entry."""
        state = self._states.of(labels)
        spans = [span(run.times) for run in runs]
        low, high = min(span[0] for span in spans), max(span[1] for span in spans)
        times = runs[0].times if len(runs) == 1 else [time_ns for run in runs for time_ns in run.times]
        if not (len(runs) == 1 and spans[0][2]) and len(set(times)) < len(times):
            return False
        return (
            (low > state.newest or state.newest not in times)
            and low >= bounds[0]
            and high <= bounds[1]
            and low >= max(state.newest, high) - self._window
            and max(lengths(run.lines)[0] for run in runs) * 4 <= self._most_line
            and not (self._moved and any(not self._moved.keys().isdisjoint(run.ids) for run in runs))
        )

    def _refuse_by_age(self, entries: list[Entry], bounds: tuple[int, int], progress: _PushState) -> Iterator[Entry]:
        """Give the entries whose age Loki takes, refuse the others."""
        oldest, newest = bounds
        if self._skew is None and not all(oldest <= entry.time_ns <= newest for entry in entries):
            # No record is lost to a clock of ours that is wrong. Raises RetryableError when Loki is away.
            self._push_nothing()
            oldest, newest = self._bounds()
        for entry in entries:
            if entry.time_ns < oldest:
                text = f"older than max_age, {self._config.max_age}; Loki would refuse it"
            elif entry.time_ns > newest:
                text = f"more than {AHEAD // 60} minutes in the future; Loki would refuse it"
            else:
                yield entry
                continue
            progress.refuse(entry.row, PermanentError(f"{self._what}: {text}", code="age", certain=True))

    def _assign_streams(self, entries: Iterator[Entry] | list[Entry]) -> Iterator[list[Run]]:
        """Give the runs of entries, each kept distinct, cut to what Loki takes, and in the stream that takes its time.

        In order of time no entry makes another late.
        """
        streams: dict[Pairs, list[Entry]] = defaultdict(list)
        taken: dict[tuple[Pairs, int, str], str] = {}
        for entry in sorted(entries, key=lambda entry: entry.time_ns):
            labels = self._states.place(entry.labels, entry.time_ns)
            streams[labels] += self._make_distinct(entry._replace(labels=labels), taken)
        for labels, members in streams.items():
            del labels
            members.sort(key=lambda entry: entry.time_ns)
            yield encode.runs_of(members)

    def _make_distinct(self, entry: Entry, taken: dict[tuple[Pairs, int, str], str]) -> Iterator[Entry]:
        """Give the entries of one record: several if its line is too long, nanoseconds later if another's are equal."""
        parts = [entry.line]
        if len(entry.line) * 4 > self._most_line:
            whole = lines.clean(entry.line).encode()
            if len(whole) > self._most_line:
                parts = _split_line(whole, self._most_line)
        state = self._states.of(entry.labels)

        def is_taken(time_ns: int, piece: str) -> bool:
            other = taken.get((entry.labels, time_ns, piece))
            if other is None and time_ns == state.newest:
                other = state.tail.get(piece)
            return other is not None and other != entry.id

        start = self._moved.get(entry.id, entry.time_ns)
        while any(is_taken(start + number, piece) for number, piece in enumerate(parts)):
            start += 1
        extra = entry.extra
        if start != entry.time_ns:
            extra = (*extra, ("ns", str(entry.time_ns)))
            self._moved[entry.id] = start
            if len(self._moved) > MOVED:
                self._moved.popitem(last=False)
        for number, piece in enumerate(parts):
            taken[entry.labels, start + number, piece] = entry.id
            mark = (("part", f"{number + 1}/{len(parts)}"),) if len(parts) > 1 else ()
            yield entry._replace(time_ns=start + number, line=piece, extra=(*extra, *mark))

    # Pushes

    def _pushes(self, streams: Iterator[list[Run]]) -> Iterator[list[Run]]:
        """Put runs into pushes: each stream in its own, but small parts of streams that cannot be refused together."""
        shared: list[Run] = []
        shared_size = 0
        now = self._clock.monotonic()
        # Nobody's records can be newer than this, so what is younger than a window before is late for no writer's.
        safe = self._now() + AHEAD * _SECOND - self._window
        most = self._push_size()
        for runs in streams:
            size = sum(run.estimate() for run in runs)
            state = self._states.of(runs[0].labels)
            if size > SMALL_BYTES:
                state.heavy = now
            if state.is_open(now) and min(span(run.times)[0] for run in runs) > safe:
                if shared_size + size > most:
                    yield shared
                    shared, shared_size = [], 0
                shared += runs
                shared_size += size
            else:
                yield from _split_runs(runs, size, most)
        if shared:
            yield shared

    def _push_size(self) -> int:
        """Give the bytes that a push is made for."""
        if self._max_push_bytes < PUSH_BYTES and self._clock.monotonic() - self._reduced_at > REDUCED_FOR:
            self._max_push_bytes = PUSH_BYTES
        return self._max_push_bytes

    def _reduce_push_size(self, most: int) -> None:
        self._max_push_bytes = max(LEAST_BYTES, min(self._max_push_bytes, most))
        self._reduced_at = self._clock.monotonic()

    def _send(self, runs: list[Run], progress: _PushState) -> list[list[Run]]:
        """Send one push and note what became of it; give the pushes that must follow."""
        body, size = self._body(runs, ids=self._ids)
        most = MOST_BYTES if self._max_push_bytes == PUSH_BYTES else 2 * self._max_push_bytes
        if size > most and (halves := _halves(runs)):
            return halves
        try:
            answer = self._push(body)
        except RetryableError as error:
            error.maybe_taken = False  # Loki keeps an entry once that is sent again soon
            self._states.doubt()
            progress.fail(runs, error)
            return []
        if answer.status == faults.STORED:
            self._rate_refusals = 0
            now = self._clock.monotonic()
            for run in runs:
                self._states.of(run.labels).note(run, now)
            return []
        alone = [list(group) for _, group in groupby(runs, key=lambda run: run.labels)]
        if len(alone) > 1 and answer.status in {400, 429}:
            return alone  # which stream it was is told for certain only where there is one
        return self._refused(runs, answer, size, progress)

    def _refused(self, runs: list[Run], answer: _http.Answer, size: int, progress: _PushState) -> list[list[Run]]:
        entries = [entry for run in runs for entry in run.entries()]
        verdict = faults.judge(answer, entries, self._what)
        if verdict.split:
            self._reduce_push_size(size // 2)
            return _halves(runs)
        if verdict.whole is not None:
            if answer.status == 429:
                self._rate_refusals += 1
                if self._rate_refusals % RATE_REFUSALS == 0:
                    self._reduce_push_size(size // 2)
            elif isinstance(verdict.whole, RetryableError):
                self._states.doubt()
            progress.fail(runs, verdict.whole)
            return []
        for place, error in verdict.refused.items():
            progress.refuse(entries[place].row, error)
        again = self._late([entries[place] for place in verdict.late], progress)
        if verdict.long:
            self._shorten([entries[place].row for place in verdict.long], verdict.most_line, answer, progress)
        if verdict.confirm:
            named = {*verdict.refused, *verdict.late, *verdict.long}
            rest = [entry for place, entry in enumerate(entries) if place not in named]
            again += [encode.runs_of(rest)] if rest else []
        return again

    def _late(self, entries: list[Entry], progress: _PushState) -> list[list[Run]]:
        """Give pushes of entries that Loki found too far behind: their stream has, or had, another writer."""
        streams: dict[Pairs, list[Entry]] = defaultdict(list)
        placed: list[Entry] = []
        for entry in entries:
            if self._states.is_finest(entry.labels, entry.time_ns):
                text = "Loki's window is smaller than out_of_order_window; give half of its max_chunk_age here"
                progress.fail(encode.runs_of([entry]), ParkedError(f"{self._what}: {text}", code="400"))
            else:
                self._states.learn(entry.labels, entry.time_ns)
                placed.append(entry)
        for entry in placed:
            labels = self._states.place(_without_backfill(entry.labels), entry.time_ns)
            streams[labels].append(entry._replace(labels=labels))
        return [encode.runs_of(members) for members in streams.values()]

    def _shorten(self, rows: list[int], most: int, answer: _http.Answer, progress: _PushState) -> None:
        """Note the server's limit for lines, which is less than ours was; the rows go again, in more parts."""
        if most >= LEAST_LINE:
            self._most_line = min(self._most_line, most)
            progress.long.update(rows)
        else:
            for row in rows:
                progress.refuse(row, _http.refusal(answer, self._what))

    def _push_nothing(self) -> _http.Answer:
        return self._push(_http.gzipped(_NOTHING) if self._is_json else self._body([], ids=False)[0])

    def _push(self, body: bytes) -> _http.Answer:
        answer = self._client.request("POST", self._config.push_path, body=body, headers=self._headers)
        self._note_clock(answer.headers.get("date", ""))
        return answer

    def _note_clock(self, date: str) -> None:
        if date == self._date and self._skew is not None:
            return
        self._date = date
        try:
            skew = int(parsedate_to_datetime(date).timestamp()) * _SECOND - self._clock.time_ns()
        except (TypeError, ValueError):
            skew = 0
        # It is told in whole seconds, when the answer was made.
        self._skew = skew if abs(skew) > SAME * _SECOND else 0


def _group_rows(batch: Batch, rows: Sequence[int]) -> Iterator[list[int]]:
    """Give rows of one resource and severity each, in their order."""
    resources, severities = batch.resources, batch.severities
    first = resources[rows[0]]
    keys: list[int]
    if resources.count(first) == len(resources):
        if severities is None:
            yield list(rows)
            return
        keys = severities
    else:
        numbers: dict[Any, int] = {}
        keys = [32 * numbers.setdefault(resource, len(numbers)) for resource in resources]
        if severities is not None:
            keys = list(map(add, keys, severities))
    groups: defaultdict[int, list[int]] = defaultdict(list)
    for row in rows:
        groups[keys[row]].append(row)
    yield from groups.values()


def _source_marks(marks: dict[int, dict[str, Any]], rows: list[int]) -> dict[int, Pairs]:
    """Give what the source itself knows of some rows, which no parser could find in the line."""
    return {place: (("marks", lines.json_text(marks[row])),) for place, row in enumerate(rows) if row in marks}


def _without_backfill(labels: Pairs) -> Pairs:
    return tuple([pair for pair in labels if pair[0] != BACKFILL])


def _split_runs(runs: list[Run], size: int, most: int) -> list[list[Run]]:
    """Cut the runs of a stream into pushes of about ``most`` bytes, of as many entries each."""
    if size <= most:
        return [runs]
    count = sum(len(run.rows) for run in runs)
    step = max(1, count * most // size)
    pushes: list[list[Run]] = [[]]
    room = step
    for run in runs:
        start = 0
        while start < len(run.rows):
            if not room:
                pushes.append([])
                room = step
            end = min(start + room, len(run.rows))
            pushes[-1].append(run.part(start, end))
            room -= end - start
            start = end
    return pushes


def _halves(runs: list[Run]) -> list[list[Run]]:
    """Give the runs in two pushes of as many entries each; none if there is but one entry."""
    count = sum(len(run.rows) for run in runs)
    return _split_runs(runs, count, (count + 1) // 2) if count > 1 else []


def _split_line(whole: bytes, most: int) -> list[str]:
    """Cut text at most ``most`` bytes long, not inside a character."""
    parts = []
    start = 0
    while start < len(whole):
        end = min(start + most, len(whole))
        while end < len(whole) and whole[end] & 0xC0 == 0x80:
            end -= 1
        parts.append(whole[start:end].decode())
        start = end
    return parts


def _snappy() -> Callable[..., tuple[bytes, int]]:
    try:
        import cramjam  # noqa: PLC0415 - only who asks for protobuf needs it
    except ModuleNotFoundError as error:
        raise ConfigError(
            "encoding: protobuf needs the package 'cramjam', which is not installed: pip install 'shipper[loki]'"
        ) from error

    def body(runs: Sequence[Run], *, ids: bool) -> tuple[bytes, int]:
        plain = encode.proto_body(runs, ids=ids)
        return bytes(cast("Any", cramjam).snappy.compress_raw(plain)), len(plain)

    return body
