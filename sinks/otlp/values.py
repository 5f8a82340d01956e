"""What both encodings agree on: names, and what becomes of values that OTLP cannot hold.

* Lone surrogates become U+FFFD.
* Integers beyond 64 bits become text.
* Nesting beyond `MAX_DEPTH` levels becomes JSON text that begins with ``[too deep] ``: common decoders refuse a whole
  request that nests more than 100 messages, and each level of a list or an object is up to three of them.
* An application's own ``log.record.uid`` or ``log.record.original`` moves to ``app.log.record.uid``: the names are taken.
* A time outside of the years 1970 to 2554 is sent as 0, "unknown".
"""

from __future__ import annotations

import re
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

    from shipper.record import Resource

#: Attribute names that are ours.
UID: Final = "log.record.uid"
ORIGINAL: Final = "log.record.original"
SOURCE: Final = "shipper.source"
#: The instrumentation scope of every record. It has no version: a request must be the same after an update.
SCOPE: Final = "shipper"
MAX_DEPTH: Final = 20
TOO_DEEP: Final = "[too deep] "
#: The range of AnyValue's int_value.
INT_MIN, INT_MAX = -(1 << 63), (1 << 63) - 1
#: severity_text of each severity number.
TEXTS: Final = ("INFO", *(name for name in ("TRACE", "DEBUG", "INFO", "WARN", "ERROR", "FATAL") for _ in range(4)))

_TAKEN = frozenset({UID, ORIGINAL})
_SURROGATE = re.compile("[\ud800-\udfff]")
_encode = msgspec.json.Encoder(enc_hook=str).encode


class Rows(NamedTuple):
    """Encoded records, one behind the other, each with what stands in front of it in a request; and where each ends."""

    data: bytes
    ends: list[int]

    @classmethod
    def of(cls, records: list[bytes]) -> Rows:
        """Put encoded records behind each other."""
        return cls(b"".join(records), list(accumulate(map(len, records))))

    def start(self, row: int) -> int:
        """Give where a record begins; that of the number of records is the end of all."""
        return self.ends[row - 1] if row else 0

    def part(self, start: int, end: int) -> memoryview:
        """Give the records from ``start`` to ``end``."""
        return memoryview(self.data)[self.start(start) : self.start(end)]


#: Resources kept; beyond it they are dropped, which bounds memory where containers come and go.
_MAX_RESOURCES = 8_192


class ResourceCache:
    """What was made of each resource, by ``make``: once for an object, and the same bytes for the same content."""

    def __init__(self, make: Callable[[Resource], bytes]) -> None:
        self._make = make
        self._known: dict[Resource, bytes] = {}

    def __len__(self) -> int:
        return len(self._known)

    def of(self, resources: list[Resource]) -> list[bytes]:
        """Give what was made of each."""
        known = self._known
        try:
            return [known[resource] for resource in resources]
        except KeyError:
            if len(known) > _MAX_RESOURCES:
                known.clear()
            for resource in resources:
                if resource not in known:
                    known[resource] = self._make(resource)
            return [known[resource] for resource in resources]


def named(key: str) -> str:
    """Give the name under which an attribute of the application is sent."""
    return f"app.{key}" if key in _TAKEN else key


def cleaned(text: str) -> str:
    """Replace lone surrogates."""
    return _SURROGATE.sub("\ufffd", text)


def deep(value: Any) -> str:
    """Give what lies too deep as text."""
    try:
        text = _encode(value).decode()
    except (ValueError, TypeError, OverflowError, RecursionError):  # UnicodeError is a ValueError
        text = cleaned(repr(value))
    return TOO_DEEP + text


def time(time_ns: int) -> int:
    """Give a time as OTLP holds it."""
    return time_ns if 0 <= time_ns < 1 << 64 else 0


def attributes(resource: Resource) -> dict[str, str]:
    """Give the attributes of a resource, the name of its source among them."""
    return {**resource.attributes, SOURCE: resource.source}
