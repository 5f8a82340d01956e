"""Events as columns, and requests of them.

An event's message is a JSON object with our member put in before its last brace, and stands in the request as a JSON
string. The texts themselves are nowhere made: only the object is escaped for each event, while what stands around id and
nanoseconds is the same for many and was escaped once.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from shipper.render import Kind, render

if TYPE_CHECKING:
    from shipper.render import Part as Column

#: Bytes that CloudWatch counts for an event besides its message (API reference of PutLogEvents).
OVERHEAD = 26
#: What one PutLogEvents takes (its API reference): bytes, counted as UTF-8 plus `OVERHEAD` an event; events; and
#: milliseconds from the first event to the last, of which we stay one below.
BYTES, EVENTS, SPAN = 1_048_576, 10_000, 86_400_000
#: Nanoseconds of a millisecond.
MILLI = 1_000_000

#: Events that are written at once. With fewer, the thread gives way to the reader too often.
_PIECE = 1024
#: What stands between the id and the nanoseconds, escaped; and the characters of id, this unescaped and nanoseconds.
_LINK = rb"\",\"ns\":\""
_VARYING = 36 + len('","ns":"') + 6

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(list[dict[str, Any]]).decode


class Frame(NamedTuple):
    """What stands before the id and behind the nanoseconds, escaped; ``size`` is the bytes by which the event exceeds its object."""

    start: str
    end: str
    size: int


class Part(NamedTuple):
    """A piece of an event that was too large."""

    object: str
    frame: Frame
    size: int


class Events(NamedTuple):
    """Events of rows of a batch; ``objects`` end in a brace, ``sizes`` are with `OVERHEAD`."""

    rows: Sequence[int]
    times: list[int]
    objects: list[str]
    ids: list[str]
    frames: list[Frame]
    sizes: list[int]

    def pick(self, places: Sequence[int]) -> Events:
        """Give the events at ``places``, of which there is at least one."""
        take = itemgetter(*places, places[0])  # of one place it would give no tuple
        rows, *columns = [list(take(column)[:-1]) for column in self]
        return Events(rows, *columns)

    def in_order(self) -> Events:
        """Give the events in the order of their milliseconds; those of one millisecond keep theirs."""
        if self.times == sorted(self.times):
            return self
        return self.pick(sorted(range(len(self.times)), key=lambda place: self.times[place] // MILLI))

    def replaced(self, parts: dict[int, list[Part]]) -> Events:
        """Give the events with those at some places replaced by their parts."""
        places = [place for place in range(len(self.rows)) for _ in range(len(parts[place]) if place in parts else 1)]
        objects, frames, sizes = list(self.objects), list(self.frames), list(self.sizes)
        for place in sorted(parts, reverse=True):
            objects[place : place + 1], frames[place : place + 1], sizes[place : place + 1] = zip(
                *parts[place], strict=True
            )
        return self.pick(places)._replace(objects=objects, frames=frames, sizes=sizes)

    def text(self, place: int) -> str:
        """Give the message of one event."""
        text = render(self._parts(place, place + 1), 0, 1).decode()
        return str(_decode(f"[{text[1:]}]")[0]["message"])

    def requests(self) -> Iterator[tuple[int, int]]:
        """Cut events in the order of time into what one request takes: ranges of them."""
        ends = list(accumulate(self.sizes))
        start = before = 0
        while start < len(ends):
            in_bytes = bisect_right(ends, before + BYTES)
            in_time = bisect_left(self.times, (self.times[start] // MILLI + SPAN) * MILLI)
            end = min(in_bytes, start + EVENTS, in_time)
            yield start, end
            before = ends[end - 1]
            start = end

    def body(self, target: dict[str, str], start: int, end: int) -> Iterator[bytes | memoryview]:
        """Write a request of a range of events, piece by piece; ``target`` names group and stream."""
        yield _encode(target)[:-1] + b',"logEvents":['
        comma = 1  # every event has one in front; the first is left out
        for at in range(start, end, _PIECE):
            stop = min(at + _PIECE, end)
            yield memoryview(render(self._parts(at, stop), 0, stop - at))[comma:]
            comma = 0
        yield b"]}"

    def _parts(self, start: int, end: int) -> list[Column]:
        """Give what the events of a range are joined from, each with a comma in front."""
        times, frames = self.times[start:end], self.frames[start:end]
        return [
            b',{"timestamp":', (Kind.MILLIS, times), b',"message":"', (Kind.OPEN, self.objects[start:end]),
            (Kind.TEXT, [frame.start for frame in frames]), (Kind.TEXT, self.ids[start:end]), _LINK,
            (Kind.BELOW, times), (Kind.TEXT, [frame.end for frame in frames]),
        ]  # fmt: skip


def frame(form: str, rest: str) -> Frame:
    """Make a frame of the member's form and of what follows the nanoseconds, which is JSON but for the last brace."""
    start, end = f',"shipper":{{"form":"{form}","id":"', f'"{rest}}}}}'
    size = OVERHEAD + len(start) + _VARYING + len(end.encode()) - 1  # its last brace is the object's
    return Frame(_escaped(start), _escaped(end) + '"}', size)


def _escaped(text: str) -> str:
    return _encode(text)[1:-1].decode()
