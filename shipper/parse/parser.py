"""The parser: fills the parsed columns of a batch.

Speed decides the shape of this module. Lines of the common forms go to `shipper.native`, where that is compiled. Of all
others, JSON lines of a batch are decoded in one call, and the common forms of access-log and fallback lines are cut by
``str.split`` and slices inside the loop, without a function call or a regular expression per line; every line that is
not of a common form goes to `shipper.parse.lines.LineParser`, which is exact and slower. All ways give the same
result, and tests hold them to it.

Whose time a record gets is decided by `shipper.parse.recordtime`; a line of a plain file without a time keeps 0 here.
A time attribute is removed only when it became the record's time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from shipper.errors import ConfigError
from shipper.native import compiled
from shipper.parse import access
from shipper.parse.levels import ANSI, INFO, KNOWN, LEVEL_KEYS, take_level
from shipper.parse.lines import LineParser, ParsedLine, without_surrogates
from shipper.parse.objects import WIDE, decode_document, is_deep, may_be_deep
from shipper.parse.recordtime import settle, settle_parts
from shipper.parse.times import SECOND, Clocks
from shipper.record import Batch

#: The formats a source may name.
FORMATS: Final = ("auto", "json", "logfmt", "access", "fallback", "plain")

_STRING: Final = {str}


class _LevelFields(msgspec.Struct, gc=False):
    """What a JSON line says of its level, under each of `LEVEL_KEYS` and in their order; all else is passed over."""

    level: Any = None
    severity: Any = None
    levelname: Any = None
    lvl: Any = None
    loglevel: Any = None
    dotted: Any = msgspec.field(default=None, name="log.level")


def _severity(stated: _LevelFields) -> int:
    return take_level(dict(zip(LEVEL_KEYS, msgspec.structs.astuple(stated), strict=True)))


def _without_ansi(lines: list[str], rows: Sequence[int]) -> list[str]:
    """Give the lines with those of some rows free of ANSI codes."""
    coloured = [i for i in rows if "\x1b" in lines[i]]
    if coloured:
        lines = list(lines)
        for i in coloured:
            lines[i] = ANSI.sub("", lines[i])
    return lines


def _fill_columns(
    batch: Batch, rows: list[int], severities: list[int], messages: list[str], documents: list[Any]
) -> None:
    if len(rows) == len(batch):
        batch.severities, batch.messages, batch.attributes = severities, messages, documents
        return
    all_severities, all_messages, all_attributes = batch.severities, batch.messages, batch.attributes
    assert all_severities is not None
    assert all_messages is not None
    assert all_attributes is not None
    for i, severity, message, document in zip(rows, severities, messages, documents, strict=True):
        all_severities[i] = severity
        all_messages[i] = message
        all_attributes[i] = document


class Parser:
    """Parses batches by one format. Not thread-safe: it keeps the times it read. Raises ConfigError."""

    def __init__(self, format: str = "auto") -> None:  # noqa: A002 - the word of the configuration
        if format not in FORMATS:
            raise ConfigError(f"no parser is called {format!r}; use one of {', '.join(FORMATS)}")
        self.format = format
        self._clocks = Clocks()
        self._line_parser = LineParser(self._clocks)
        self._decoder = msgspec.json.Decoder(dict[str, Any])
        self._levels = msgspec.json.Decoder(_LevelFields)

    def parse(self, batch: Batch) -> None:
        """Fill severities, messages, attributes and times of the batch in place. Never fails on a line.

        The batch must not have left the reader thread. In a plain file ``stamps`` are filled with the times.
        """
        raws = batch.raws
        if batch.times is batch.stamps:
            # Docker's stamps make the ids and stay; the times may become the lines' own.
            batch.times = list(batch.stamps)
        count = len(raws)
        rows: Sequence[int] = range(count)
        severities = [INFO] * count
        messages = list(raws)
        attributes: list[dict[str, Any]] = [{} for _ in raws] if self.format == "plain" else [_NO_ATTRIBUTES] * count
        if compiled is not None and self.format == "auto":
            rows = compiled.parse(
                raws, batch.stamps, batch.times, batch.offsets, severities, messages, attributes, KNOWN
            )
        batch.severities, batch.messages, batch.attributes = severities, messages, attributes
        lines = _without_ansi(raws, rows)
        if lines is not raws:
            for i in rows:
                messages[i] = lines[i]
        if self.format == "auto":
            self._parse_each(
                batch, lines, self._parse_common_forms(batch, lines, self._parse_json_lines(batch, lines, rows))
            )
        else:
            self._parse_each(batch, lines, range(count))
        if batch.marks:
            attributes = batch.attributes
            for i, mark in batch.marks.items():
                attributes[i] = {**attributes[i], **mark}
        batch._ids = None  # noqa: SLF001 - stamps of plain files have changed, and ids with them

    def levels(self, batch: Batch) -> None:
        """Fill the severities alone, with what `parse` would find, for sinks that ship raw lines under a level.

        Costs a third of it, because nothing but levels is made of the lines. A number that no float holds makes
        `parse` take a JSON line for text, and is passed over here.
        """
        if self.format != "auto":
            probe = msgspec.structs.replace(batch, times=list(batch.times), stamps=list(batch.stamps))
            self.parse(probe)
            batch.severities = probe.severities
            return
        batch.severities = severities = [INFO] * len(batch)
        rows: Sequence[int] = range(len(batch)) if compiled is None else compiled.levels(batch.raws, severities, KNOWN)
        lines = _without_ansi(batch.raws, rows)
        objects = []
        requests = []
        others = []
        for i in rows:
            line = lines[i]
            if line[:1] == "{" and line[-1] == "}":
                objects.append(i)
            elif access.may_be_request(line):
                requests.append(i)
            elif line[19:20] == "." and line[23:26] == "Z [" and "\n" not in line:
                # The common fallback line; what is wrong with it, its time for one, is seen by the exact reader.
                close = line.find("] ", 26, 42)
                severity = KNOWN.get(line[26:close])
                if close > 0 and severity is not None and self._is_second(line[:19]) and line[20:23].isdecimal():
                    severities[i] = severity
                else:
                    others.append(i)
            else:
                others.append(i)
        if objects:
            others += self._json_levels(severities, lines, objects)
        if requests:
            found = access.cut([lines[i] for i in requests], self._clocks)
            if found is None:
                others += requests
            else:
                for i, (_, severity) in zip(requests, found.codes, strict=True):
                    severities[i] = severity
        for i in others:
            severities[i] = self._line_parser.auto(lines[i]).severity

    def _is_second(self, text: str) -> bool:
        return (self._clocks.starts.get(text) or self._clocks.second(text)) is not None

    def _json_levels(self, severities: list[int], lines: list[str], rows: list[int]) -> list[int]:
        """Fill the levels that JSON lines state; give the indexes of those that are no JSON after all."""
        # Each line is judged by itself: all at once is what each alone would give.
        texts = [lines[i] for i in rows]
        try:
            stated = self._levels.decode_lines("\n".join(texts))
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            stated = []
        if len(stated) != len(rows):
            others = []
            for i, text in zip(rows, texts, strict=True):
                try:
                    severities[i] = _severity(self._levels.decode(text))
                except (msgspec.MsgspecError, UnicodeError, RecursionError):
                    others.append(i)
            return others
        try:
            found = [KNOWN[one.level] for one in stated]
        except (KeyError, TypeError):
            found = list(map(_severity, stated))
        for i, severity in zip(rows, found, strict=True):
            severities[i] = severity
        return []

    def _parse_json_lines(self, batch: Batch, lines: list[str], asked: Sequence[int]) -> list[int]:
        """Parse the JSON lines of some rows, all decoded at once; give the indexes of all others."""
        rows: list[int] = []
        others: list[int] = []
        texts: list[str] = []
        for i in asked:
            line = lines[i]
            if line[:1] == "{" and line[-1] == "}":
                rows.append(i)
                texts.append(line)
            else:
                others.append(i)
        if not rows:
            return others
        docs = self._decode(texts)
        bulk = self._take_levels_and_messages(docs)
        if bulk is None:
            return others + self._parse_objects(batch, lines, rows, docs)
        found, texts = bulk
        _fill_columns(batch, rows, found, texts, docs)
        for i, doc in zip(rows, docs, strict=True):
            if "timestamp" in doc or "time" in doc or "ts" in doc or "@timestamp" in doc:
                self._settle_time(batch, i, doc)
        return others

    @staticmethod
    def _take_levels_and_messages(docs: list[Any]) -> tuple[list[int], list[str]] | None:
        """Take level and message out of documents that all have a known level and a text message.

        If one is different, give None, with every document as it was: then each is looked at on its own.
        """
        try:
            found = [KNOWN[doc["level"]] for doc in docs]
            texts = [doc["message"] for doc in docs]
        except (KeyError, TypeError):
            # TypeError: a level that is no text or number, or None for a line that is no JSON after all.
            return None
        if set(map(type, texts)) != _STRING or "\x1b" in "".join(texts):
            return None
        for doc in docs:
            del doc["level"], doc["message"]
        return found, texts

    def _settle_time(self, batch: Batch, i: int, doc: dict[str, Any]) -> None:
        """Settle the time of a document that has one."""
        # The commonest, an ISO text of Docker's own second or its neighbours, decides nothing.
        stamp = batch.stamps[i]
        text = doc.get("timestamp")
        if (
            stamp
            and text.__class__ is str
            and text[-1:] == "Z"
            and (start := self._clocks.starts.get(text[:19])) is not None
            and -SECOND <= start - stamp <= SECOND
        ):
            return
        time, time_key = self._line_parser.time_of(doc)
        if time is not None and settle(batch, i, time):
            del doc[time_key]

    def _parse_objects(self, batch: Batch, lines: list[str], rows: list[int], docs: list[Any]) -> list[int]:
        """Parse documents one by one; give the indexes of the lines that are no JSON after all."""
        severities, messages, attributes = batch.severities, batch.messages, batch.attributes
        assert severities is not None
        assert messages is not None
        assert attributes is not None
        others: list[int] = []
        for i, doc in zip(rows, docs, strict=True):
            if doc is None:
                others.append(i)
                continue
            try:
                severities[i] = KNOWN[doc["level"]]
                del doc["level"]
            except (KeyError, TypeError):
                severities[i] = take_level(doc)
            key = "message" if "message" in doc else "msg" if "msg" in doc else ""
            if key:
                message = doc.pop(key)
                if message.__class__ is not str:
                    message = self._message_text(doc, key, message, lines[i])
                messages[i] = ANSI.sub("", message) if "\x1b" in message else message
            self._settle_time(batch, i, doc)
            attributes[i] = doc
        return others

    def _parse_common_forms(self, batch: Batch, lines: list[str], rows: list[int]) -> list[int]:
        """Parse access-log and fallback lines of the common forms; give the indexes of all others."""
        requests = [i for i in rows if access.may_be_request(lines[i])]
        if requests and self._parse_access_lines(batch, lines, requests):
            if len(requests) == len(rows):
                return []
            done = set(requests)
            rows = [i for i in rows if i not in done]
        return self._parse_fallback_lines(batch, lines, rows)

    def _parse_access_lines(self, batch: Batch, lines: list[str], rows: list[int]) -> bool:
        """Parse combined access-log lines, all cut at once; False, with nothing changed, if one is uncommon."""
        found = access.cut([lines[i] for i in rows], self._clocks)
        if found is None:
            return False
        severities, attributes = batch.severities, batch.attributes
        assert severities is not None
        assert attributes is not None
        for i, client, user, start, method, target, version, (code, severity), size, referer, agent in zip(
            rows, found.clients, found.users, found.starts, found.methods, found.targets, found.versions, found.codes,
            map(int, found.sizes), found.referers, found.agents, strict=True,
        ):  # fmt: skip
            row: dict[str, Any] = {
                "ip_address": client,
                "http.request.method": method,
                "url.path": target,
                "network.protocol.name": "http",
                "network.protocol.version": version,
                "http.response.status_code": code,
                "http.response.body.size": size,
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
            settle_parts(batch, i, start, 1_000_000)
        return True

    def _parse_fallback_lines(self, batch: Batch, lines: list[str], rows: list[int]) -> list[int]:
        """Parse lines such as ``2026-11-22T10:00:00.000Z [error] message``; give the indexes of all others."""
        severities, messages, attributes = batch.severities, batch.messages, batch.attributes
        assert severities is not None
        assert messages is not None
        assert attributes is not None
        clocks = self._clocks
        starts, known = clocks.starts, KNOWN
        others = []
        for i in rows:
            line = lines[i]
            if line[19:20] != "." or line[23:26] != "Z [" or "\n" in line:
                others.append(i)
                continue
            close = line.find("] ", 26, 42)
            severity = known.get(line[26:close])
            milliseconds = line[20:23]
            start = starts.get(line[:19]) or clocks.second(line[:19])
            if close < 0 or severity is None or start is None or not milliseconds.isdecimal():
                others.append(i)
                continue
            severities[i] = severity
            message = line[close + 2 :]
            messages[i] = message if message.isascii() else without_surrogates(message)
            attributes[i] = {}
            settle_parts(batch, i, start + int(milliseconds) * 1_000_000, 1000)
        return others

    def _parse_each(self, batch: Batch, lines: list[str], rows: list[int] | range) -> None:
        """Parse lines one at a time."""
        severities, messages, attributes = batch.severities, batch.messages, batch.attributes
        assert severities is not None
        assert messages is not None
        assert attributes is not None
        for i in rows:
            line = self._parse_line(lines[i])
            severities[i], message, attributes[i], time, time_key = line
            messages[i] = message if message.isascii() else without_surrogates(message)
            if time is not None and settle(batch, i, time) and time_key:
                del attributes[i][time_key]

    def _parse_line(self, text: str) -> ParsedLine:
        parser = self._line_parser
        if self.format == "auto":
            return parser.auto(text)
        found = None
        if self.format == "json":
            found = parser.json(text)
        elif self.format == "logfmt":
            found = parser.logfmt(text.rstrip("\r\n"))
        elif self.format == "access":
            found = parser.access(text.rstrip("\r\n"))
        elif self.format == "fallback":
            found = parser.fallback(text.rstrip("\r\n"))
        return found if found is not None else parser.plain(text)

    def _decode(self, texts: list[str]) -> list[Any]:
        # Each text begins with { and ends with }, so it is at least one value; as many values as texts is one each.
        whole = "\n".join(texts)
        if len(whole) > WIDE and max(map(len, texts)) > WIDE:
            return list(map(decode_document, texts))
        try:
            docs: list[Any] = self._decoder.decode_lines(whole)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            docs = []
        if len(docs) != len(texts):
            return list(map(decode_document, texts))  # what is None the exact reader mends, or takes as plain
        for place in may_be_deep(whole):
            if is_deep(docs[place]):
                docs[place] = decode_document(texts[place])
        return docs

    @staticmethod
    def _message_text(doc: dict[str, Any], key: str, message: Any, line: str) -> str:
        # A message that is no text: null is none, so the other key or the line stands in; all else is its JSON.
        if message is not None:
            return msgspec.json.encode(message).decode()
        doc[key] = None
        other = doc.get("msg") if key == "message" else None
        if other is None:
            return line
        del doc["msg"]
        return other if isinstance(other, str) else msgspec.json.encode(other).decode()


_NO_ATTRIBUTES: Final[dict[str, Any]] = {}
