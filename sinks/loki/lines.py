"""What the line of an entry is, in three forms, and how a record is read from it again.

* ``raw``: the line as the application wrote it. Whoever reads parses it as the pipeline would have.
* ``json``: ``{"message": ..., "attributes": {...}}``, for ``| json`` of LogQL.
* ``logfmt``: ``msg=... key=value``, for ``| logfmt`` of LogQL. Text that would read as a number, true, false or null
  stands in quotes; lists and objects are JSON in quotes; text that begins as those do has its first character escaped.
  Attributes whose name is no key of logfmt stand together as JSON under ``_``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from shipper.record import Batch

_SURROGATE = re.compile("[\ud800-\udfff]")
_KEY = re.compile(r'[^\s"=\x00-\x1f\x7f]+')
_QUOTED = re.compile(r'[\s"=\\\x00-\x1f\x7f]|^$')
_PAIR = re.compile(r'([^\s"=]++)=("[^"\\]*+(?:\\.[^"\\]*+)*+"|[^\s"]*+)(?: |$)')
#: What holds the message and what the attributes without a key of their own.
_MESSAGE, _REST = "msg", "_"

_encode = msgspec.json.Encoder(enc_hook=str).encode
_decode = msgspec.json.decode
#: What decoding raises for a text that is no JSON, or is nested too deep to be taken for any.
_NO_JSON = (msgspec.DecodeError, UnicodeError, RecursionError)


class _Line(msgspec.Struct, frozen=True):
    message: str
    attributes: Any


def clean(text: str) -> str:
    """Replace lone surrogates, which no UTF-8 can hold, by U+FFFD."""
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


def json_text(value: Any) -> str:
    """Render a value as JSON, lone surrogates replaced however deep they stand."""
    try:
        return _encode(value).decode()
    except UnicodeEncodeError:
        return _encode(_cleaned(value)).decode()


def writer(form: str) -> Callable[[Batch], list[str]]:
    """Give the function that makes the lines of a batch in one of the three forms."""
    if form == "raw":
        return lambda batch: batch.raws
    write = _json if form == "json" else _logfmt

    def lines(batch: Batch) -> list[str]:
        messages = batch.messages if batch.messages is not None else batch.raws
        attributes: Sequence[dict[str, Any]] = (
            batch.attributes if batch.attributes is not None else [{} for _ in range(len(batch))]
        )
        return list(map(write, messages, attributes))

    return lines


def read(form: str, line: str) -> tuple[str, dict[str, Any]]:
    """Give message and attributes of a line; one that is not of the form is a message as it is."""
    if form == "logfmt":
        return _from_logfmt(line)
    if form == "json":
        try:
            found = _decode(line)
        except _NO_JSON:
            return line, {}
        if isinstance(found, dict) and found.keys() == {"message", "attributes"} and isinstance(found["message"], str):
            attributes = found["attributes"]
            return found["message"], attributes if isinstance(attributes, dict) else {"attributes": attributes}
    return line, {}


def _json(message: str, attributes: dict[str, Any]) -> str:
    row = _Line(message, attributes)
    try:
        return _encode(row).decode()
    except UnicodeEncodeError:
        return json_text({"message": message, "attributes": attributes})


def _logfmt(message: str, attributes: dict[str, Any]) -> str:
    pairs = [f"{_MESSAGE}={_value(message)}"]
    rest = {}
    for key, value in attributes.items():
        key = clean(key)  # noqa: PLW2901 - nothing wants the other
        if _KEY.fullmatch(key) and key not in {_MESSAGE, _REST}:
            pairs.append(f"{key}={_value(value)}")
        else:
            rest[key] = value
    if rest:
        pairs.append(f"{_REST}={_value(rest)}")
    return " ".join(pairs)


def _value(value: Any) -> str:
    if isinstance(value, str):
        text = clean(value)
        if not _QUOTED.search(text) and not _is_json(text):
            return text
        quoted = json_text(text)
        return f'"\\u{ord(text[0]):04x}{quoted[2:]}' if text[:1] in {"{", "["} else quoted
    text = json_text(value)
    if value is None or isinstance(value, int | float):
        return text
    # Lists and objects, and what JSON makes a text of.
    return _value(_decode(text)) if text.startswith('"') else json_text(text)


def _is_json(text: str) -> bool:
    try:
        _decode(text)
    except _NO_JSON:
        return text[:1] in {"{", "["}
    return True


def _from_logfmt(line: str) -> tuple[str, dict[str, Any]]:
    found: dict[str, Any] = {}
    end = 0
    try:
        while (match := _PAIR.match(line, end)) is not None:
            end = match.end()
            found[match[1]] = _read_value(match[2])
    except _NO_JSON:
        return line, {}
    message = found.pop(_MESSAGE, None)
    if end != len(line) or not isinstance(message, str):
        return line, {}
    rest = found.pop(_REST, {})
    return message, {**found, **rest} if isinstance(rest, dict) else found


def _read_value(text: str) -> Any:
    if text.startswith('"'):
        inner = _decode(text, type=str)
        return _decode(inner) if text[1:2] in {"{", "["} else inner
    try:
        return _decode(text)
    except _NO_JSON:
        return text


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {clean(str(key)): _cleaned(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_cleaned(item) for item in value]
    return value
