"""Records as entries of streams, and entries as requests, in both of Loki's forms.

An entry keeps exact what reading back needs. Beside the line, as structured metadata:

* ``id``; what of the resource no label says, under its name with ``_`` for what Loki does not allow in names;
* ``source``, the name of the source;
* ``shipper``, only when something would be lost otherwise: JSON with ``names`` (names that ``_`` hides), ``empty`` (names
  without value), ``more`` (pairs beyond what Loki takes) and ``severity`` (numbers between the levels, or no label that
  tells the level);
* ``ns``, the record's time, where the entry's is off by nanoseconds to stay distinct from an equal line;
* ``marks``, JSON: attributes of a raw line that the source has and the line has not;
* ``part``, ``2/3`` for the second of three parts of a line that is too long for one entry.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from isal import isal_zlib

from shipper.record import LEVELS, SEVERITIES
from shipper.render import Kind, lengths, render
from sinks.loki.config import BACKFILL, places
from sinks.loki.lines import clean, json_text

if TYPE_CHECKING:
    from shipper.record import Resource
    from shipper.render import Part
    from sinks.loki.config import LokiConfig

Pairs = tuple[tuple[str, str], ...]

#: Bytes of a label's value (max_label_value_length).
LABEL_BYTES = 2048
#: Bytes and pairs of one entry's structured metadata (max_structured_metadata_size, ..._entries_count), less what
#: ``id``, ``ns``, ``part`` and ``shipper`` itself may take.
METADATA_BYTES, METADATA_PAIRS = 65_536 - 1024, 128 - 4

#: Names whose form with ``_`` the reader knows how to undo.
KNOWN = (
    "service.name", "service.namespace", "service.version", "container.name", "container.id", "container.image.name",
    "log.iostream", "log.file.path", "log.file.name", "host.name", "deployment.environment.name", "compose.project",
    "compose.service",
)  # fmt: skip
RESTORED = {name.replace(".", "_"): name for name in KNOWN}
#: Words of templates by the attribute they stand for.
WORDS = {"service": "service.name", "container": "container.name", "stream": "log.iostream", "host": "host.name"}
#: Names of structured metadata that mean something of their own, to us or to Loki.
OURS = frozenset(["id", "part", "shipper", "source", "ns", "marks", "detected_level", "service_name", BACKFILL])

_UNSIGNED = (1 << 64) - 1
_UNNAMED = re.compile(r"[^a-zA-Z0-9_]")
_log = logging.getLogger(__name__)
_encode = msgspec.json.Encoder().encode


class Run(NamedTuple):
    """Entries of one stream that share their metadata, as columns; ``rows`` are places in the batch.

    ``extras`` has metadata of single entries by their place in the run.
    """

    labels: Pairs
    metadata: Pairs
    rows: list[int]
    times: list[int]
    lines: list[str]
    ids: list[str]
    extras: dict[int, Pairs]

    def part(self, start: int, end: int) -> Run:
        """Give the entries from ``start`` to ``end``."""
        extras = {place - start: pairs for place, pairs in self.extras.items() if start <= place < end}
        cut = slice(start, end)
        return Run(self.labels, self.metadata, self.rows[cut], self.times[cut], self.lines[cut], self.ids[cut], extras)

    def entries(self) -> Iterator[Entry]:
        """Give the entries one by one."""
        for place, (row, time_ns, line, record_id) in enumerate(
            zip(self.rows, self.times, self.lines, self.ids, strict=True)
        ):
            yield Entry(time_ns, row, line, record_id, self.labels, self.metadata, self.extras.get(place, ()))

    def estimate(self) -> int:
        """Give about the bytes of its JSON."""
        beside = 70 + sum(len(name) + len(value) + 6 for name, value in self.metadata)
        return lengths(self.lines)[1] * 5 // 4 + len(self.lines) * beside


class Entry(NamedTuple):
    """One line as Loki takes it."""

    time_ns: int
    row: int
    line: str
    id: str
    labels: Pairs
    metadata: Pairs
    extra: Pairs = ()


def runs_of(entries: Sequence[Entry]) -> list[Run]:
    """Put entries into runs, in their order."""
    runs = []
    for (labels, metadata), group in groupby(entries, key=lambda entry: (entry.labels, entry.metadata)):
        some = list(group)
        runs.append(
            Run(
                labels,
                metadata,
                rows=[entry.row for entry in some],
                times=[entry.time_ns for entry in some],
                lines=[entry.line for entry in some],
                ids=[entry.id for entry in some],
                extras={place: entry.extra for place, entry in enumerate(some) if entry.extra},
            )
        )
    return runs


class Streams:
    """Knows labels and metadata of a record by its resource and severity; ``None`` is a severity nobody looked for."""

    def __init__(self, config: LokiConfig) -> None:
        self._labels = config.labels
        self._metadata = config.structured_metadata
        self._known: dict[tuple[Resource, int | None], tuple[Pairs, Pairs]] = {}

    def of(self, resource: Resource, severity: int | None) -> tuple[Pairs, Pairs]:
        """Give the labels of the stream and the metadata that all its entries from this resource share."""
        found = self._known.get((resource, severity))
        if found is None:
            if len(self._known) > 10_000:
                self._known.clear()
            found = self._known[resource, severity] = self._make(resource, severity)
        return found

    def _make(self, resource: Resource, severity: int | None) -> tuple[Pairs, Pairs]:
        labels: dict[str, str] = {}
        labelled: set[str] = set()
        level = LEVELS[SEVERITIES["info"] if severity is None else severity]
        for name, template in self._labels.items():
            value = template
            for word in places(template):
                value = value.replace(f"{{{word}}}", _value(word, resource, level))
            value = clean(value)
            whole = value.encode()
            if len(whole) > LABEL_BYTES:
                value = whole[: LABEL_BYTES - 3].decode(errors="ignore") + "…"
            elif value and places(template) == [template[1:-1]]:
                labelled.add(template[1:-1])
            if value:
                labels[name] = value
        beside = self._beside(resource, severity, labelled, labels) if self._metadata == "all" else ()
        return tuple(labels.items()), beside

    def _beside(self, resource: Resource, severity: int | None, labelled: set[str], labels: dict[str, str]) -> Pairs:
        pairs: dict[str, str] = {} if "source" in labelled else {"source": clean(resource.source)}
        known = {WORDS.get(word, word) for word in labelled - {"source", "level"}}
        names: dict[str, str] = {}
        more: dict[str, str] = {}
        size = 0
        for name, value in resource.attributes.items():
            if name in known or not value:
                continue
            plain = _plain(clean(name), {*OURS, *labels, *pairs})
            text = clean(value)
            size += len(plain) + len(text.encode())
            if len(pairs) >= METADATA_PAIRS or size > METADATA_BYTES // 2:
                more[clean(name)] = text
                continue
            pairs[plain] = text
            if RESTORED.get(plain, plain) != name:
                names[plain] = clean(name)
        rest: dict[str, Any] = {}
        if names:
            rest["names"] = names
        if empty := [clean(name) for name, value in resource.attributes.items() if not value]:
            rest["empty"] = empty
        if severity is not None and ("level" not in labelled or SEVERITIES[LEVELS[severity]] != severity):
            rest["severity"] = severity
        if more:
            rest["more"] = more
        if rest:
            pairs["shipper"] = _fitting(rest, METADATA_BYTES - sum(len(n) + len(v.encode()) for n, v in pairs.items()))
        return tuple(pairs.items())


def _fitting(rest: dict[str, Any], most: int) -> str:
    """Give ``rest`` as JSON of at most ``most`` bytes: what Loki cannot hold is cut, the longest first, and told."""
    text = json_text(rest)
    while len(text.encode()) > most and rest.get("more"):
        name, value = max(rest["more"].items(), key=lambda pair: len(pair[1]))
        if len(value) > 64:
            rest["more"][name] = value[: len(value) // 2].rstrip("…") + "…"
        else:
            del rest["more"][name]
        _log.warning("the resource is too large for Loki's structured metadata; %s is cut", name)
        text = json_text(rest)
    return text


def _plain(name: str, taken: set[str]) -> str:
    plain = _UNNAMED.sub("_", name)
    if plain in taken or plain[:1].isdigit() or not plain or plain.startswith("__"):
        plain = f"resource_{plain}"
    number, start = 2, plain
    while plain in taken:
        plain = f"{start}_{number}"
        number += 1
    return plain


def _value(word: str, resource: Resource, level: str) -> str:
    if word == "level":
        return level
    if word == "source":
        return resource.source
    return resource.attributes.get(WORDS.get(word, word), "")


# JSON. Entries are written some hundred at once, and the pieces go into the compression one by one while they are in the
# processor's cache: the whole is nowhere in memory.

#: Entries of one piece. With fewer, the thread gives way to the reader too often.
_PIECE = 1024
_GZIP, _FAST = 31, 1


def json_body(runs: Sequence[Run], *, ids: bool) -> tuple[bytes, int]:
    """Make a push of runs, those of one stream side by side; give it as gzip, and its size before.

    The same runs give the same bytes.
    """
    try:
        return _gzipped(_pieces(runs, ids=ids))
    except UnicodeEncodeError:
        return _gzipped(_pieces([run._replace(lines=list(map(clean, run.lines))) for run in runs], ids=ids))


def _gzipped(pieces: Iterable[bytes | memoryview]) -> tuple[bytes, int]:
    packer = isal_zlib.compressobj(_FAST, isal_zlib.DEFLATED, _GZIP)
    packed, size = [], 0
    for piece in pieces:
        packed.append(packer.compress(piece))
        size += len(piece)
    packed.append(packer.flush())
    return b"".join(packed), size


def _pieces(runs: Sequence[Run], *, ids: bool) -> Iterator[bytes | memoryview]:
    before = b'{"streams":[{"stream":'
    for labels, group in groupby(runs, key=lambda run: run.labels):
        yield before + _encode(dict(labels)) + b',"values":['
        comma = 1  # every entry has one in front; the first is left out
        for run in group:
            parts = _parts(run, ids=ids)
            for start in range(0, len(run.rows), _PIECE):
                yield memoryview(render(parts, start, min(start + _PIECE, len(run.rows))))[comma:]
                comma = 0
        before = b']},{"stream":'
    yield b"]}]}"


def _parts(run: Run, *, ids: bool) -> list[Part]:
    """Give what the entries of a run are joined from, each with a comma in front."""
    parts: list[Part] = [b',["', (Kind.NUMBER, run.times), b'",', (Kind.STRING, run.lines)]
    if ids:
        parts += [b',{"id":"', (Kind.TEXT, run.ids), b'"' + _members(run.metadata)]
        if run.extras:
            extras = [_members(run.extras.get(place, ())).decode() for place in range(len(run.rows))]
            parts.append((Kind.TEXT, extras))
        parts.append(b"}")
    parts.append(b"]")
    return parts


def _members(pairs: Pairs) -> bytes:
    return b"".join([b",%b:%b" % (_encode(name), _encode(text)) for name, text in pairs])


# Protobuf: push.proto by hand, because it is four messages.


def proto_body(runs: Sequence[Run], *, ids: bool) -> bytes:
    """Make a PushRequest of runs, those of one stream side by side, uncompressed."""
    out = []
    for labels, group in groupby(runs, key=lambda run: run.labels):
        text = _field(b"\x0a", labels_text(labels).encode())
        out.append(_field(b"\x0a", text + b"".join([_proto_entries(run, ids=ids) for run in group])))
    return b"".join(out)


def labels_text(labels: Pairs) -> str:
    """Give labels in Loki's own form, ``{name="value", ...}``, sorted by name."""
    return "{" + ", ".join([f"{name}={go_quoted(value)}" for name, value in sorted(labels)]) + "}"


def go_quoted(text: str) -> str:
    """Quote a text as Go's strconv.Unquote reads it, which knows JSON's escapes but the one of a slash."""
    return json_text(text)


def _proto_entries(run: Run, *, ids: bool) -> bytes:
    shared = b"".join([_pair(name, value) for name, value in run.metadata])
    out = []
    for place, (time_ns, line, record_id) in enumerate(zip(run.times, run.lines, run.ids, strict=True)):
        seconds, nanos = divmod(time_ns, 1_000_000_000)
        body = _field(b"\x0a", b"\x08" + varint(seconds & _UNSIGNED) + b"\x10" + varint(nanos))
        body += _field(b"\x12", clean(line).encode())
        if ids:
            extra = b"".join([_pair(name, value) for name, value in run.extras.get(place, ())])
            body += _pair("id", record_id) + shared + extra
        out.append(_field(b"\x12", body))
    return b"".join(out)


def _field(tag: bytes, body: bytes) -> bytes:
    return tag + varint(len(body)) + body


def _pair(name: str, value: str) -> bytes:
    return _field(b"\x1a", _field(b"\x0a", name.encode()) + _field(b"\x12", value.encode()))


def varint(value: int) -> bytes:
    """Encode a number of at least 0 as protobuf's variable-length integer."""
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
