r"""Docker's json-file lines as columns: ``{"log":"text\n","stream":"stdout","attrs":{...},"time":"...Z"}``.

The usual block (every line whole, no trace in it) is decoded without a Python-level step per line, in compiled code
where there is any. Any other block goes line by line through the joiner.

Ids: the hash is over the line's JSON bytes with the newline, seeded by the container's id. Of several identical
lines at one and the same time the nth is hashed with the seed plus n, and gets n nanoseconds more; n is counted over
the run of neighbours with that time within one file, so it is the same on every replay.
"""

from __future__ import annotations

import re
from calendar import timegm
from itertools import accumulate, islice, repeat
from operator import add, itemgetter, lt
from time import strptime
from typing import TYPE_CHECKING

import msgspec
from xxhash import xxh3_64_intdigest, xxh3_128_intdigest

from shipper.native import compiled
from shipper.record import FAULT, Batch
from shipper.tailing.decoding import BATCH_RECORDS, Decoded, OnFault, ignore
from shipper.tailing.joiner import PendingRecord
from shipper.tailing.traces import may_contain_lines

if TYPE_CHECKING:
    from shipper.tailing.container import Container
    from shipper.tailing.joiner import Joiner
    from shipper.tailing.tailedfile import TailedFile

#: A fragment of Docker's is at least this long; a shorter one was the process's last words.
FRAGMENT_BYTES = 16384
#: How far back the run of lines with equal times is rebuilt: usually, and at most.
LOOKBACK = 64 * 1024
LOOKBACK_MOST = 16 << 20

#: What is asked of every text of a block: methods of C code, where a comprehension would run bytecode.
_LAST, _WITHOUT_LAST = itemgetter(-1), itemgetter(slice(None, -1))
_NEWLINE, _ZONE, _POINT = {"\n"}, {"Z"}, {".", "Z"}
_NINETEENTH = itemgetter(19)
_LENGTHS = {20, *range(22, 31)}
_BILLION = 1_000_000_000
_SECONDS_KEPT = 4096
#: The form that Docker writes, in ASCII: what is not of it was not written by Docker.
_SECOND = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}")
_TIME = re.compile(_SECOND.pattern + r"(?:\.[0-9]{1,9})?Z")
#: Seconds since 1970 that are believed: what lies outside does not fit into the nanoseconds of an id or a sink.
_END_OF_TIME = 7_289_654_400
#: What a line whose time cannot be read is marked with.
BAD_TIME = "time"

#: Times in nanoseconds, texts without their line feed, streams (one name if all are the same), offsets, hashes, and
#: whether each time is later than the one before.
_Columns = tuple[list[int], list[str], str | list[str], list[int], list[int], bool]


class JsonFileLine(msgspec.Struct, gc=False):
    """A json-file line; ``attrs`` is only looked at when a name is needed."""

    log: str = ""
    stream: str = "stdout"
    time: str = ""


class _Tagged(msgspec.Struct):
    attrs: dict[str, str] = {}


class _Seconds(dict[str, int]):
    """Nanoseconds of a whole second's text, less the 1 that leads fractions; kept, for a second has many lines."""

    def __missing__(self, text: str) -> int:
        if len(self) > _SECONDS_KEPT:
            self.clear()
        seconds = timegm(strptime(text, "%Y-%m-%dT%H:%M:%S")) if _SECOND.fullmatch(text) else 0
        if not 0 < seconds < _END_OF_TIME or text[17] == "6":
            raise ValueError(text)
        value = self[text] = seconds * _BILLION - _BILLION
        return value


class DockerLines:
    """Decodes the lines of one container."""

    def __init__(self, container: Container, on_fault: OnFault = ignore) -> None:
        self._container = container
        self._on_fault = on_fault
        self._seed = xxh3_64_intdigest(container.id.encode())
        self._decoder = msgspec.json.Decoder(JsonFileLine)
        self._integers = msgspec.json.Decoder(list[int])
        self._seconds = _Seconds()

    def begin(self, file: TailedFile) -> None:
        """Rebuild the run of equal times that reading continues."""
        window = LOOKBACK
        while not self._look_back(file, window) and window < LOOKBACK_MOST:
            window *= 4
        if not self._container.known:
            first = file.data.read(0, LOOKBACK).lstrip(b"\0").partition(b"\n")[0]
            try:
                self._container.tagged(msgspec.json.decode(first, type=_Tagged).attrs.get("tag", ""))
            except msgspec.MsgspecError:
                return

    def _look_back(self, file: TailedFile, window: int) -> bool:
        """Rebuild the run from the bytes before the position; tell whether its beginning was among them."""
        file.run_time, file.run = 0, {}
        start = max(0, file.position - window)
        lines = file.data.read(start, file.position - start).split(b"\n")[:-1]
        runs = 0
        for raw in lines[1:] if start else lines:
            stripped = raw.lstrip(b"\0") + b"\n"
            line = self._line(stripped)
            # A line without a time counts to the run that it stands in; see `_broken`.
            stamp = (line is not None and self._stamp(line)) or file.run_time
            runs += stamp != file.run_time
            self._distinct(file, stripped, stamp)
        return start == 0 or runs > 1

    def decode(self, file: TailedFile, block: bytes, joiner: Joiner) -> Decoded:
        """Give a batch of the block's lines, or feed the joiner."""
        if not joiner.holding and not file.skips:
            try:
                batch = self._decode_at_once(file, block, joiner)
            except Exception as error:  # noqa: BLE001 - whatever a line does, line by line it is that line's alone
                self._on_fault(file.path, error)
                self.begin(file)
            else:
                if batch is not None:
                    return Decoded(batch, len(block))
        return self._feed(file, block, joiner)

    def _decode_at_once(self, file: TailedFile, block: bytes, joiner: Joiner) -> Batch | None:
        """Give a batch of the usual block; of any other None, and nothing is changed."""
        columns: _Columns | None = None
        if compiled is not None:
            columns = compiled.docker_lines(block, file.position, self._seed)
        if columns is None:
            columns = self._columns(block, file.position)
        if columns is None:
            return None
        stamps, raws, streams, offsets, hashes, later = columns
        tty = self._container.tty
        # A terminal ends every line with a carriage return; where nobody says what it is, the first line tells.
        if tty or (tty is None and raws[0].endswith("\r")):
            raws = [text.removesuffix("\r") for text in raws]
        if joiner.rule is not None and may_contain_lines(raws):
            return None
        if later and stamps[0] != file.run_time:
            file.run_time, file.run = stamps[-1], {block[offsets[-1] - file.position :]: 0}
        else:
            for index, (stamp, line) in enumerate(zip(stamps, block.splitlines(keepends=True), strict=True)):
                repeats = self._distinct(file, line, stamp)
                if repeats:
                    hashes[index] = xxh3_128_intdigest(line, self._seed + repeats)
                    stamps[index] = stamp + repeats
        resource = self._container.resource
        if isinstance(streams, str):
            resources = [resource(streams)] * len(raws)
        else:
            each = {stream: resource(stream) for stream in set(streams)}
            resources = [each[stream] for stream in streams]
        return Batch(stamps, stamps, hashes, raws, resources, offsets)

    def _columns(self, block: bytes, position: int) -> _Columns | None:
        """Cut a block of lines as `shipper.native` does, or give None for a block with a line of another form."""
        if b"\r" in block:
            return None
        lines = block.splitlines(keepends=True)
        number = len(lines)
        try:
            found = self._decoder.decode_lines(block)
            stamps = self._parse_times([line.time for line in found])
            texts = [line.log for line in found]
            ends = set(map(_LAST, texts))
        except (msgspec.MsgspecError, ValueError, IndexError):  # IndexError: a line without any text
            return None
        if len(found) != number or ends != _NEWLINE:
            return None
        streams = [line.stream for line in found]
        offsets = list(accumulate(map(len, lines), initial=position))
        offsets.pop()
        return (
            stamps,
            list(map(_WITHOUT_LAST, texts)),
            streams[0] if streams.count(streams[0]) == number else streams,
            offsets,
            list(map(xxh3_128_intdigest, lines, repeat(self._seed))),
            all(map(lt, stamps, islice(stamps, 1, None))),
        )

    def feed_line(self, file: TailedFile, raw: bytes, offset: int, joiner: Joiner) -> None:
        """Take one physical line, with its newline if it has one."""
        end = offset + len(raw)
        stripped = raw.lstrip(b"\0")
        offset += len(raw) - len(stripped)
        if not stripped.strip():
            return
        line = self._line(stripped)
        if line is None:
            # A line torn by a crash of Docker's, and the next one written right behind it.
            cut = stripped.rfind(b'{"log":"', 1)
            following = self._line(stripped[cut:]) if cut > 0 else None
            if following is not None:
                self._broken(file, stripped[:cut], offset, end=offset + cut, joiner=joiner)
                self.feed_line(file, stripped[cut:], offset + cut, joiner)
            else:
                self._broken(file, stripped, offset, end=end, joiner=joiner)
            return
        stamp = self._stamp(line)
        if not stamp:
            self._on_fault(file.path, ValueError(f"no time of Docker's: {line.time[:40]!r}"))
            self._broken(file, stripped, offset, end=end, joiner=joiner, fault=BAD_TIME)
            return
        text = line.log
        repeats = self._distinct(file, stripped, stamp)
        whole = text.endswith("\n")
        if whole:
            text = text[:-1]
            if self._container.tty is not False:
                text = text.removesuffix("\r")
        elif len(text) < FRAGMENT_BYTES:
            # Shorter than Docker's buffer: it was flushed at the end of the process's output.
            whole = len(text.encode()) < FRAGMENT_BYTES
        record = PendingRecord(
            file,
            offset,
            time=stamp + repeats,
            stamp=stamp + repeats,
            digest=xxh3_128_intdigest(stripped, self._seed + repeats),
            raw=text,
            resource=self._container.resource(line.stream),
        )
        joiner.feed(record, end=end, stream=line.stream, key=line.time, whole=whole)

    def _feed(self, file: TailedFile, block: bytes, joiner: Joiner) -> Decoded:
        """Feed the joiner line by line; never a batch."""
        offset = file.position
        for line in block.split(b"\n", BATCH_RECORDS)[:-1]:
            end = offset + len(line) + 1
            try:
                self.feed_line(file, line + b"\n", offset, joiner)
            except Exception as error:  # noqa: BLE001 - it costs this line its form, and nothing else
                self._on_fault(file.path, error)
                self._broken(file, line, offset, end=end, joiner=joiner, fault=type(error).__name__)
            offset = end
        return Decoded(None, offset - file.position)

    def _parse_times(self, texts: list[str]) -> list[int]:
        """Give nanoseconds of many times. Raises ValueError, IndexError or DecodeError if one is not of Docker's form.

        One list of JSON integers is decoded three times as fast as int() is called; the leading 1 guards zeros.
        """
        fractions = self._integers.decode(
            f"[1{',1'.join([text[20:29] if len(text) == 30 else text[20:-1].ljust(9, '0') for text in texts])}]"
        )
        # A text may say anything: more numbers than one, or a longer one.
        if (
            len(fractions) != len(texts)
            or min(fractions) < _BILLION
            or max(fractions) >= 2 * _BILLION
            or not set(map(len, texts)) <= _LENGTHS
            or set(map(_LAST, texts)) != _ZONE
            or not set(map(_NINETEENTH, texts)) <= _POINT
        ):
            raise ValueError(texts)
        seconds = self._seconds
        first = min(texts)[:19]
        if max(texts)[:19] == first:
            # So every text between them begins the same: one second for all.
            base = seconds[first]
            return [base + fraction for fraction in fractions]
        return list(map(add, [seconds[text[:19]] for text in texts], fractions))

    def _broken(
        self, file: TailedFile, raw: bytes, offset: int, *, end: int, joiner: Joiner, fault: str | None = None
    ) -> None:
        """Take bytes as text: of no json-file line at the time of the line before, with a fault at that of reading."""
        repeats = self._distinct(file, raw, file.run_time)
        stamp = file.run_time if fault is None else 0
        # The time of reading may be that of many lines, so the place tells equal ones apart.
        told_apart_by = raw if fault is None else b"%d:%b" % (offset, raw)
        record = PendingRecord(
            file,
            offset,
            time=stamp and stamp + repeats,
            stamp=stamp and stamp + repeats,
            digest=xxh3_128_intdigest(told_apart_by, self._seed + repeats),
            raw=raw.decode("utf-8", "replace").removesuffix("\n"),
            resource=self._container.resource("stdout"),
        )
        if fault is None:
            joiner.feed(record, end=end, stream="")
            return
        record.mark = {FAULT: fault}
        joiner.feed_alone(record, end=end, stream="")

    def _distinct(self, file: TailedFile, raw: bytes, stamp: int) -> int:
        """Count a line in the run of equal times; give how often it stood there before."""
        if stamp != file.run_time:
            file.run_time, file.run = stamp, {raw: 0}
            return 0
        repeats = file.run.get(raw, -1) + 1
        file.run[raw] = repeats
        return repeats

    def _line(self, raw: bytes) -> JsonFileLine | None:
        try:
            line = self._decoder.decode(raw)
        except msgspec.MsgspecError:
            try:
                line = self._decoder.decode(raw.decode("utf-8", "replace"))
            except msgspec.MsgspecError:
                return None
        # Other JSON has no time at all.
        return line if line.time else None

    def _stamp(self, line: JsonFileLine) -> int:
        """Give a line's time in nanoseconds, 0 if it cannot be read. Docker trims trailing zeros."""
        text = line.time
        if not _TIME.fullmatch(text):
            return 0
        try:
            return self._seconds[text[:19]] + int("1" + text[20:-1].ljust(9, "0"))
        except ValueError:
            return 0
