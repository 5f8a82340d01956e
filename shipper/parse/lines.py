"""Recognising one line at a time: everything that is not on the parser's bulk path."""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

import msgspec

from shipper.parse.levels import ANSI, BARE, ERROR, FATAL, INFO, KNOWN, WARN, WORDS, severity_of, take_level
from shipper.parse.objects import decode_document
from shipper.parse.times import TIME_KEYS, Clocks, Moment

#: The names under which a structured line may state its time; the first that is present counts.
#: Keys that mean something of their own.
RESERVED: Final = frozenset((*TIME_KEYS, "level", "severity", "message", "msg", "details"))

_FALLBACK = re.compile(
    r"(\d{4}[-/]\d\d[-/]\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d{1,9})?(?:Z|[+-]\d\d:?\d\d)?) \[([A-Za-z]+)\](?: |$)"
)
#: The inside of a quoted text. Here as below, what may be long is taken whole and never given back: a search that
#: tries again with less is where time beyond all bounds comes from.
_INSIDE: Final = r'([^"\\]*+(?:\\.[^"\\]*+)*+)'
_ACCESS = re.compile(
    rf'(\S++) (\S++) (.{{0,256}}?) \[([^\]]{{20,30}})\] "{_INSIDE}" (\d{{3}}) (\d++|-)(?: "{_INSIDE}" "{_INSIDE}")?(?= |$)'
)
_LOGFMT_PAIR = re.compile(rf'([A-Za-z_@][\w.@/-]*+)=(?:"{_INSIDE}"|([^\s"]*+))(?:\s++|$)')
_ESCAPE = re.compile(r"\\(.)")
_ESCAPED: Final = {"n": "\n", "t": "\t", "r": "\r"}

_TIME: Final = r"\d{4}[-/]\d\d[-/]\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d{1,9})?(?: ?(?:Z|UTC|[+-]\d\d:?\d\d)(?![\w:]))?"
_STAMPED = re.compile(rf"\[?({_TIME})\]?(?:\s+|$)")
#: After the time: ``[WARN] x``, ``ERROR: x``, ``INFO x``, ``- app.db - ERROR - x``, ``ERROR:root:x``.
_HEAD = re.compile(
    r"(?:- )?(?:([\w.]+) - )?(\[ ?)?([A-Za-z]{3,13})(?(2) ?\])(?:( ?:\s*)(?:([\w.]+):(?! ))?|(?:\s+[-|]\s+|\s+))(?=\S)"
)
_LOOSE = re.compile(
    r"\[(?:\w+:)?([A-Za-z]{3,13})\]|(?<!\w)(TRACE|DEBUG|INFO|NOTICE|WARN|WARNING|ERROR|FATAL|CRITICAL|PANIC|SEVERE)(?!\w)"
)
_LOOSE_REACH: Final = 100

_TRACEBACK: Final = "Traceback (most recent call last):"
_FRAME = re.compile(r"^[^\S\n]++at \S", re.MULTILINE)
_PYTHON_LAST = re.compile(r"^([^\W\d]\w*+(?:\.[^\W\d]\w*+)*+)(?:: ?(.*))?$", re.MULTILINE)
_GO = re.compile(r"^(?:\S++ \S++ )?(?:http: )?(panic(?: serving \S+)?|fatal error): (.*)$", re.MULTILINE)
#: Where the name of a type ends that was thrown, and what may follow it.
_THROWN = re.compile(r"(?:Error|Exception|Throwable)(?: \[[\w$.-]++\])?(?:: (.*)|(?: \{)?$)")
#: What the name of a type is made of, and where in it no further package may begin.
_TYPE_NAME = re.compile(r"[\w$./]++")
_SEPARATORS = re.compile(r"[./]{2,}+")
_BARE_EXCEPTION = re.compile(
    r"(?:Uncaught )?((?:[A-Za-z_$][\w$]*+\.)*+[A-Za-z_$]*(?:Error|Exception))(?: \[[\w$.-]++\])?: (.*)"
)
_UNICODE = re.compile(r"\\(?:u([0-9a-fA-F]{4})(?:\\u([0-9a-fA-F]{4}))?|.)", re.DOTALL)
_SURROGATES = re.compile("[\ud800-\udfff]")


class ParsedLine(NamedTuple):
    """What one line became. ``time_key`` names the attribute that ``time`` was read from, ``""`` if none."""

    severity: int
    message: str
    attributes: dict[str, Any]
    time: Moment | None = None
    time_key: str = ""


class LineParser:
    """Recognises lines one at a time. ``text`` is without ANSI codes; ``raw`` is the line as written."""

    def __init__(self, clocks: Clocks) -> None:
        self._clocks = clocks

    def auto(self, text: str) -> ParsedLine:
        """Recognise any line. A line that is like none of the formats is plain: info, the line as message."""
        text = text.rstrip("\r\n")
        if not text:
            return ParsedLine(INFO, "", {})
        first = text[0]
        if first == "{" or (first.isspace() and text.lstrip()[:1] == "{"):
            found = self.json(text)
            if found is not None:
                return found
        found = self.fallback(text)
        if found is None and "\n" in text:
            return self._multiline(text)
        if found is None and '] "' in text:
            found = self.access(text)
        if found is None and "=" in text:
            found = self.logfmt(text)
        return found if found is not None else self._plain(text)

    def plain(self, text: str) -> ParsedLine:
        """Take a line as it is."""
        return ParsedLine(INFO, text.rstrip("\r\n"), {})

    def json(self, text: str) -> ParsedLine | None:
        """Read a JSON object; None if it is none, or is one that JSON of ours could not carry (NaN)."""
        text = text.strip()
        if text[:1] != "{" or text[-1:] != "}":
            return None
        attributes = decode_document(text)
        if attributes is None and "\\u" in text:
            # JavaScript writes half of a cut emoji as a lone surrogate escape: the one fault worth mending.
            attributes = decode_document(_UNICODE.sub(_without_half_pair, _SURROGATES.sub("�", text)))
        if attributes is None:
            return None
        return self.structured(attributes, text)

    def structured(self, attributes: dict[str, Any], raw: str) -> ParsedLine:
        """Turn a decoded object into a line: level and message leave the attributes."""
        severity = take_level(attributes)
        message = raw
        for key in ("message", "msg"):
            value = attributes.get(key)
            if value is not None:
                del attributes[key]
                message = value if isinstance(value, str) else _as_json(value)
                break
        if "\x1b" in message:
            message = ANSI.sub("", message)
        time, time_key = self.time_of(attributes)
        return ParsedLine(severity, message, attributes, time, time_key)

    def time_of(self, attributes: dict[str, Any]) -> tuple[Moment | None, str]:
        """Find the line's own time among its attributes, and the key it stands under."""
        for key in TIME_KEYS:
            if key in attributes:
                moment = self._clocks.read(attributes[key])
                if moment is not None:
                    return moment, key
        return None, ""

    def fallback(self, text: str) -> ParsedLine | None:
        """Read ``ISO-time [level] message``, where the message may span lines."""
        match = _FALLBACK.match(text)
        if match is None:
            return None
        severity = WORDS.get(match[2].lower())
        if severity is None:
            return None
        message = text[match.end() :]
        found = exception_of(message) if "\n" in message else None
        return ParsedLine(severity, message, found[0] if found else {}, self._clocks.iso(match[1]))

    def access(self, text: str) -> ParsedLine | None:
        """Read a common or combined access-log line; fields after those are left in the message alone."""
        match = _ACCESS.match(text)
        if match is None:
            return None
        client, _, user, date, request, status_text, size, referer, agent = match.groups()
        attributes: dict[str, Any] = {"ip_address": client}
        if user != "-":
            attributes["user.name"] = user
        method, _, rest = _unescape(request).partition(" ")
        target, _, protocol = rest.rpartition(" ")
        if target and protocol.startswith("HTTP/"):
            path, mark, query = target.partition("?")
            attributes["http.request.method"] = method
            attributes["url.path"] = path
            if mark:
                attributes["url.query"] = query
            attributes["network.protocol.name"] = "http"
            attributes["network.protocol.version"] = protocol[5:]
        status = int(status_text)
        attributes["http.response.status_code"] = status
        if size != "-":
            attributes["http.response.body.size"] = int(size[:18])
        if referer is not None and referer != "-":
            attributes["http.request.header.referer"] = _unescape(referer)
        if agent is not None and agent != "-":
            attributes["user_agent"] = _unescape(agent)
        start = self._clocks.access(date)
        return ParsedLine(
            severity_of_status(status),
            text,
            attributes,
            None if start is None else Moment(start, 1_000_000, zoned=True),
        )

    def logfmt(self, text: str) -> ParsedLine | None:
        """Read ``key=value key="quoted value"``. Every word must be a pair, so that prose with an ``=`` is left alone."""
        attributes: dict[str, Any] = {}
        end = 0
        while (match := _LOGFMT_PAIR.match(text, end)) is not None:
            end = match.end()
            attributes[match[1]] = match[3] if match[2] is None else _unescape(match[2])
        if not end or end != len(text) or (len(attributes) == 1 and attributes.keys().isdisjoint(RESERVED)):
            return None
        severity = take_level(attributes)
        message = text
        for key in ("msg", "message"):
            if key in attributes:
                message = ANSI.sub("", attributes.pop(key))
                break
        time, time_key = self.time_of(attributes)
        return ParsedLine(severity, message, attributes, time, time_key)

    def _multiline(self, text: str) -> ParsedLine:
        # A record of several lines that the source joined: a trace, maybe after a line of log that led to it.
        found = exception_of(text)
        if found is None:
            first, _, rest = text.partition("\n")
            line = self._plain(first)
            return line._replace(message=f"{line.message}\n{rest}")
        attributes, severity, headline = found
        first = text.partition("\n")[0]
        line = self._plain(first)
        if first in {headline, line.message}:
            return ParsedLine(severity, headline, attributes, line.time)
        # A line of log with its own level led to the trace.
        return ParsedLine(line.severity, line.message, {**line.attributes, **attributes}, line.time)

    def _plain(self, text: str) -> ParsedLine:
        stamp = _STAMPED.match(text)
        time = None if stamp is None else self._clocks.iso(stamp[1])
        head = _HEAD.match(text, 0 if stamp is None else stamp.end())
        if head is not None:
            logger, bracket, word, colon, root = head.groups()
            severity = KNOWN.get(word)
            # Without brackets or a colon only capitals are a level; "Error: x" names a type, and "LOG x" is prose.
            if severity is not None and (
                bracket is not None or word in BARE or (colon is not None and word not in {"Error", "Note", "note"})
            ):
                if logger is not None and stamp is None:
                    return ParsedLine(severity, text, {})
                name = logger or (root if word in BARE else None)
                start = head.end() if root is None or name is not None else head.start(5)
                return ParsedLine(severity, text[start:], {} if name is None else {"logger": name}, time)
        if stamp is not None or text[:1] == "[":
            for match in _LOOSE.finditer(text, 0, _LOOSE_REACH):
                severity = severity_of(match[1] or match[2])
                if severity is not None:
                    return ParsedLine(severity, text, {}, time)
        exception = _BARE_EXCEPTION.match(text)
        if exception is not None:
            return ParsedLine(ERROR, text, {"exception.type": exception[1], "exception.message": exception[2]}, time)
        return ParsedLine(INFO, text, {}, time)


def exception_of(text: str) -> tuple[dict[str, Any], int, str] | None:
    """Find a stack trace in a text of several lines: its ``exception.*`` attributes, severity and headline."""
    at = text.rfind(_TRACEBACK)
    if at >= 0:
        last = None
        for last in _PYTHON_LAST.finditer(text, at + len(_TRACEBACK)):  # noqa: B007 - the last match is what is wanted
            pass
        if last is not None:
            return _exception(text, last[1], last[2]), ERROR, last[0]
        return {"exception.stacktrace": text}, ERROR, text.partition("\n")[0]
    if "goroutine " in text or text.startswith(("panic: ", "fatal error: ")):
        match = _GO.search(text)
        if match is not None:
            severity = ERROR if "serving" in match[1] else FATAL
            return _exception(text, match[1].partition(" serving")[0], match[2]), severity, match[0]
    frame = _FRAME.search(text)
    if frame is None:
        return None
    for line in text[: frame.start()].split("\n"):
        thrown = _thrown(line)
        if thrown is not None:
            return _exception(text, *thrown), ERROR, line.removesuffix(" {")
    return {"exception.stacktrace": text}, ERROR, text.partition("\n")[0]


def _thrown(line: str) -> tuple[str, str | None] | None:
    """Find the type that a line names as thrown, with its package, and the message."""
    if "Error" not in line and "Exception" not in line and "Throwable" not in line:
        return None
    for name in _TYPE_NAME.finditer(line):
        if name[0].endswith(("Error", "Exception", "Throwable")):
            begin = name.end() - (5 if name[0].endswith("Error") else 9)
            match = _THROWN.match(line, begin)
            if match is not None:
                kind = _SEPARATORS.split(name[0])[-1].removeprefix(".").removeprefix("/")
                return kind, None if match[1] is None else match[1].removesuffix(" {")
    return None


def severity_of_status(status: int) -> int:
    """Give the severity of an HTTP status: 5xx error, 4xx warn, all else info."""
    return ERROR if status >= 500 else WARN if status >= 400 else INFO


def has_surrogates(text: str) -> bool:
    """Tell whether lone surrogates stand in a text."""
    return _SURROGATES.search(text) is not None


def without_surrogates(text: str) -> str:
    """Replace lone surrogates, which no UTF-8 can carry, by U+FFFD."""
    return _SURROGATES.sub("�", text)


def _exception(text: str, kind: str, message: str | None) -> dict[str, Any]:
    return {"exception.type": kind, "exception.message": message or "", "exception.stacktrace": text}


def _unescape(text: str) -> str:
    return text if "\\" not in text else _ESCAPE.sub(_unescape_match, text)


def _unescape_match(match: re.Match[str]) -> str:
    char = match[1]
    return _ESCAPED.get(char) or (char if char in '"\\' else match[0])


def _as_json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _without_half_pair(match: re.Match[str]) -> str:
    high, low = match[1], match[2]
    if high is None:
        return match[0]
    first = int(high, 16)
    if low is not None and 0xD800 <= first < 0xDC00 <= int(low, 16) < 0xE000:
        return match[0]
    kept = "\\ufffd" if 0xD800 <= first < 0xE000 else f"\\u{high}"
    if low is None:
        return kept
    second = int(low, 16)
    return kept + ("\\ufffd" if 0xD800 <= second < 0xE000 else f"\\u{low}")
