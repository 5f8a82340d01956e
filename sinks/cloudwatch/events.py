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
from typing import Any, NamedTuple

import msgspec

#: Bytes that CloudWatch counts for an event besides its message (API reference of PutLogEvents).
OVERHEAD = 26
#: What one PutLogEvents takes (its API reference): bytes, counted as UTF-8 plus `OVERHEAD` an event; events; and
#: milliseconds from the first event to the last, of which we stay one below.
BYTES, EVENTS, SPAN = 1_048_576, 10_000, 86_400_000
#: Nanoseconds of a millisecond.
MILLI = 1_000_000

#: Events that are written at once: what they take stays in the processor's cache until it is compressed.
_PIECE = 128
#: What stands between the id and the nanoseconds; and the characters of id, this and nanoseconds.
_LINK = '","ns":"'
_VARYING = 36 + len(_LINK) + 6

_encode = msgspec.json.Encoder().encode
_encode_lines = msgspec.json.Encoder().encode_lines
_decode = msgspec.json.Decoder(list[dict[str, Any]]).decode


class Shell(NamedTuple):
    """What stands before the id and behind the nanoseconds, escaped; ``size`` is the bytes by which the event exceeds its object."""

    start: str
    end: str
    size: int


class Part(NamedTuple):
    """A piece of an event that was too large."""

    object: str
    shell: Shell
    size: int


class Events(NamedTuple):
    """Events of rows of a batch; ``objects`` end in a brace, ``sizes`` are with `OVERHEAD`.

    ``moments`` are the times as text, whose last six digits go into our member.
    """

    rows: Sequence[int]
    times: Sequence[int]
    moments: Sequence[str]
    objects: Sequence[str]
    ids: Sequence[str]
    shells: Sequence[Shell]
    sizes: Sequence[int]

    def pick(self, places: Sequence[int]) -> Events:
        """Give the events at ``places``, of which there is at least one."""
        take = itemgetter(*places, places[0])  # of one place it would give no tuple
        return Events(*[take(column)[:-1] for column in self])

    def in_order(self) -> Events:
        """Give the events in the order of their milliseconds; those of one millisecond keep theirs."""
        if list(self.times) == sorted(self.times):
            return self
        return self.pick(sorted(range(len(self.times)), key=lambda place: self.times[place] // MILLI))

    def replaced(self, parts: dict[int, list[Part]]) -> Events:
        """Give the events with those at some places replaced by their parts."""
        places = [place for place in range(len(self.rows)) for _ in range(len(parts[place]) if place in parts else 1)]
        objects, shells, sizes = list(self.objects), list(self.shells), list(self.sizes)
        for place in sorted(parts, reverse=True):
            objects[place : place + 1], shells[place : place + 1], sizes[place : place + 1] = zip(
                *parts[place], strict=True
            )
        return self.pick(places)._replace(objects=objects, shells=shells, sizes=sizes)

    def text(self, place: int) -> str:
        """Give the message of one event."""
        return str(_decode(f"[{self._written(slice(place, place + 1))[1:]}]")[0]["message"])

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

    def body(self, target: dict[str, str], start: int, end: int) -> Iterator[bytes]:
        """Write a request of a range of events, piece by piece; ``target`` names group and stream."""
        yield _encode(target)[:-1] + b',"logEvents":['
        for at in range(start, end, _PIECE):
            text = self._written(slice(at, min(at + _PIECE, end)))
            yield (text[1:] if at == start else text).encode()
        yield b"]}"

    def _written(self, cut: slice) -> str:
        """Write events with a comma before each."""
        shells = self.shells[cut]
        flat = [',{"timestamp":', "", ',"message":"', "", "", "", _escaped(_LINK), "", ""] * len(shells)
        moments = self.moments[cut]
        flat[1::9] = [moment[:-6] for moment in moments]
        # No string has a line feed inside, and every object ends in the brace before which ours goes in.
        flat[3::9] = _encode_lines(self.objects[cut])[1:-3].decode().split('}"\n"')
        flat[4::9] = [shell.start for shell in shells]
        flat[5::9] = self.ids[cut]
        flat[7::9] = [moment[-6:] for moment in moments]
        flat[8::9] = [shell.end for shell in shells]
        return "".join(flat)


def shell(form: str, rest: str) -> Shell:
    """Make a shell of the member's form and of what follows the nanoseconds, which is JSON but for the last brace."""
    start, end = f',"shipper":{{"form":"{form}","id":"', f'"{rest}}}}}'
    size = OVERHEAD + len(start) + _VARYING + len(end.encode()) - 1  # its last brace is the object's
    return Shell(_escaped(start), _escaped(end) + '"}', size)


def _escaped(text: str) -> str:
    return _encode(text)[1:-1].decode()
