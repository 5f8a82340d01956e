"""The parser: fills the parsed columns of a batch.

Speed decides the shape of this module. JSON lines of a batch are decoded in one call; the common forms of access-log
and fallback lines are cut by ``str.split`` and slices inside the loop, without a function call or a regular
expression per line; every line that is not of a common form goes to `shipper.parse.lines.Reader`, which is exact and
slower. Both ways give the same result, and a test holds them to it.

Whose time a record gets: Docker's, when the line has no time, names no zone, or agrees with Docker within 2 s;
otherwise the line's own (it was replayed or held up). In a plain file always the line's own, a missing zone read as
UTC; a line without a time keeps 0 for the pipeline to stamp. A time attribute is removed only when it became the
record's time.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from shipper.errors import ConfigError
from shipper.parse.levels import ANSI, INFO, KNOWN, take_level
from shipper.parse.lines import RESERVED, Line, Reader, severity_of_status, without_surrogates
from shipper.parse.times import SECOND, TOLERANCE, Clocks, Moment, fill
from shipper.record import Batch

#: The formats a source may name.
FORMATS: Final = ("auto", "json", "logfmt", "access", "fallback", "plain")

_PROTOCOLS: Final = {f"HTTP/{version}": version for version in ("0.9", "1.0", "1.1", "2", "2.0", "3", "3.0")}
_STATUSES: Final = {str(code): (code, severity_of_status(code)) for code in range(100, 600)}


class Parser:
    """Parses batches by one format. Not thread-safe: it keeps the times it read. Raises ConfigError."""

    def __init__(self, format: str = "auto") -> None:  # noqa: A002 - the word of the configuration
        if format not in FORMATS:
            raise ConfigError(f"no parser is called {format!r}; use one of {', '.join(FORMATS)}")
        self.format = format
        self._clocks = Clocks()
        self._reader = Reader(self._clocks)
        self._decoder = msgspec.json.Decoder(dict[str, Any])

    def parse(self, batch: Batch) -> None:
        """Fill severities, messages, attributes and times of the batch in place. Never fails on a line.

        The batch must not have left the reader thread. In a plain file ``stamps`` are filled with the times.
        """
        raws = batch.raws
        lines = raws
        if "\x1b" in "".join(raws):
            lines = [ANSI.sub("", raw) if "\x1b" in raw else raw for raw in raws]
        count = len(raws)
        severities = [INFO] * count
        messages = list(lines)
        attributes: list[dict[str, Any]] = [{} for _ in raws] if self.format == "plain" else [_NONE] * count
        batch.severities, batch.messages, batch.attributes = severities, messages, attributes
        if self.format == "auto":
            rest = self._objects(batch, lines)
            rest = self._common(batch, lines, rest)
            self._each(batch, lines, rest)
        else:
            self._each(batch, lines, range(count))
        for i, mark in (batch.marks or {}).items():
            attributes[i] = {**attributes[i], **mark}
        batch._ids = None  # noqa: SLF001 - stamps of plain files have changed, and ids with them

    def _objects(self, batch: Batch, lines: list[str]) -> list[int]:
        """Parse the JSON lines, all decoded at once; give the indexes of all others."""
        severities, messages, attributes = batch.severities, batch.messages, batch.attributes
        assert severities is not None
        assert messages is not None
        assert attributes is not None
        stamps = batch.stamps
        known, reserved, starts = KNOWN, RESERVED, self._clocks.starts
        # Comparing is cheaper than slicing: these are the lines of two characters or more that begin with "{".
        rows = [i for i, line in enumerate(lines) if "{" < line < "|" and line[-1] == "}"]
        if not rows:
            return list(range(len(lines)))
        rest: list[int] = []
        if len(rows) < len(lines):
            rest = [i for i, line in enumerate(lines) if not "{" < line < "|" or line[-1] != "}"]
        docs = self._decode([lines[i] for i in rows])
        for i, doc in zip(rows, docs, strict=True):
            if doc is None:
                rest.append(i)
                continue
            try:
                severities[i] = known[doc["level"]]
                del doc["level"]
            except (KeyError, TypeError):
                severities[i] = take_level(doc)
            if "message" in doc:
                key = "message"
            elif "msg" in doc:
                key = "msg"
            else:
                key = ""
            if key:
                message = doc.pop(key)
                if message.__class__ is not str:
                    message = self._message(doc, key, message, lines[i])
                if "\x1b" in message:
                    message = ANSI.sub("", message)
                messages[i] = message
            # The commonest time, an ISO text of Docker's own second or its neighbours, decides nothing; TIME_KEYS
            # is spelt out here because a loop over it costs more than all the tests.
            if "timestamp" in doc or "time" in doc or "ts" in doc or "@timestamp" in doc:
                stamp = stamps[i]
                text = doc.get("timestamp")
                if (
                    not stamp
                    or text.__class__ is not str
                    or text[-1:] != "Z"
                    or (start := starts.get(text[:19])) is None
                    or not -SECOND <= start - stamp <= SECOND
                ):
                    time, time_key = self._reader.time_of(doc)
                    if time is not None and self._settle(batch, i, time):
                        del doc[time_key]
            if "details" in doc:
                details = doc.pop("details")
                # The same as `lines.lift`, without a call.
                if details.__class__ is dict and details:
                    for name in details:
                        if name in doc or name in reserved:
                            doc["details"] = details
                            break
                    else:
                        doc.update(details)
                else:
                    doc["details"] = details
            attributes[i] = doc
        return rest

    def _common(self, batch: Batch, lines: list[str], rows: list[int]) -> list[int]:
        """Parse access-log and fallback lines of the common forms; give the indexes of all others."""
        severities, messages, attributes = batch.severities, batch.messages, batch.attributes
        assert severities is not None
        assert messages is not None
        assert attributes is not None
        times, stamps, offsets = batch.times, batch.stamps, batch.offsets
        clocks = self._clocks
        starts, statuses, protocols, known = clocks.starts, _STATUSES, _PROTOCOLS, KNOWN
        rest = []
        for i in rows:
            line = lines[i]
            if line[19:20] == "." and line[23:26] == "Z [" and "\n" not in line:
                # 2026-11-22T10:00:00.000Z [error] message
                close = line.find("] ", 26, 42)
                severity = known.get(line[26:close])
                milliseconds = line[20:23]
                start = starts.get(line[:19]) or clocks.second(line[:19])
                if close < 0 or severity is None or start is None or not milliseconds.isdecimal():
                    rest.append(i)
                    continue
                severities[i] = severity
                messages[i] = line[close + 2 :]
                attributes[i] = {}
                own = start + int(milliseconds) * 1_000_000
                unit_us = 1000
            elif '] "' in line and "\\" not in line:
                # client ident user [date zone] "method target protocol" status size "referer" "agent"
                try:
                    head, request, tail, referer, between, agent, end = line.split('"')
                    client, _, user, day, zone, empty = head.split(" ")
                    method, target, protocol = request.split(" ")
                    before, status, size, after = tail.split(" ")
                    code, severity = statuses[status]
                    version = protocols[protocol]
                except (ValueError, KeyError):
                    rest.append(i)
                    continue
                date = day + zone
                start = starts.get(date) or clocks.access(date)
                if (
                    start is None
                    or end
                    or empty
                    or before
                    or after
                    or between != " "
                    or not target
                    or not size.isdecimal()
                    or len(size) > 18
                ):
                    rest.append(i)
                    continue
                row: dict[str, Any] = {
                    "ip_address": client,
                    "http.request.method": method,
                    "url.path": target,
                    "network.protocol.name": "http",
                    "network.protocol.version": version,
                    "http.response.status_code": code,
                    "http.response.body.size": int(size),
                }
                if "?" in target:
                    row["url.path"], _, row["url.query"] = target.partition("?")
                if referer != "-":
                    row["http.request.header.referer"] = referer
                if agent != "-":
                    row["user_agent"] = agent
                if user != "-":
                    row["user.name"] = user
                severities[i] = severity
                attributes[i] = row
                own = start
                unit_us = 1_000_000
            else:
                rest.append(i)
                continue
            # The same as `_settle`, without a call and with a zone that is known to be there.
            stamp = stamps[i]
            if stamp == 0 or not -TOLERANCE <= own - stamp <= TOLERANCE:
                offset = offsets[i]
                own += ((offset >> 6) % unit_us) * 1000 + (offset & 63) * 15
                times[i] = own
                if stamp == 0:
                    stamps[i] = own
        return rest

    def _each(self, batch: Batch, lines: list[str], rows: list[int] | range) -> None:
        """Parse lines one at a time."""
        severities, messages, attributes = batch.severities, batch.messages, batch.attributes
        assert severities is not None
        assert messages is not None
        assert attributes is not None
        for i in rows:
            line = self._line(lines[i])
            severities[i], message, attributes[i], time, time_key = line
            messages[i] = message if message.isascii() else without_surrogates(message)
            if time is not None and self._settle(batch, i, time) and time_key:
                del attributes[i][time_key]

    def _line(self, text: str) -> Line:
        reader = self._reader
        if self.format == "auto":
            return reader.auto(text)
        found = None
        if self.format == "json":
            found = reader.json(text)
        elif self.format == "logfmt":
            found = reader.logfmt(text.rstrip("\r\n"))
        elif self.format == "access":
            found = reader.access(text.rstrip("\r\n"))
        elif self.format == "fallback":
            found = reader.fallback(text.rstrip("\r\n"))
        return found if found is not None else reader.plain(text)

    def _decode(self, texts: list[str]) -> list[dict[str, Any]] | list[dict[str, Any] | None]:
        # Each text begins with { and ends with }, so it is at least one value; as many values as texts is one each.
        try:
            docs = self._decoder.decode_lines("\n".join(texts))
            if len(docs) == len(texts):
                return docs
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            pass
        return [self._decode_one(text) for text in texts]

    def _decode_one(self, text: str) -> dict[str, Any] | None:
        try:
            return self._decoder.decode(text)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            return None  # the reader mends it or takes it as plain

    @staticmethod
    def _message(doc: dict[str, Any], key: str, message: Any, line: str) -> str:
        # A message that is no text: null is none, so the other key or the line stands in; all else is its JSON.
        if message is not None:
            return msgspec.json.encode(message).decode()
        doc[key] = None
        other = doc.get("msg") if key == "message" else None
        if other is None:
            return line
        del doc["msg"]
        return other if isinstance(other, str) else msgspec.json.encode(other).decode()

    @staticmethod
    def _settle(batch: Batch, i: int, moment: Moment) -> bool:
        """Decide whether row ``i`` takes the line's own time, and tell."""
        stamp = batch.stamps[i]
        own = moment.ns
        if stamp and (not moment.zoned or -TOLERANCE <= own - stamp <= TOLERANCE):
            return False
        if moment.unit_us:
            own += fill(batch.offsets[i], moment.unit_us)
        batch.times[i] = own
        if not stamp:
            batch.stamps[i] = own
        return True


_NONE: Final[dict[str, Any]] = {}
