"""OTLP as JSON: protobuf's JSON mapping with OTLP's deviations (enums as numbers, 64-bit integers as text)."""

from __future__ import annotations

import math
from itertools import repeat
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from sinks.otlp import values
from sinks.otlp.values import Rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from shipper.record import Batch, Resource

_SCOPE = b'"scopeLogs":[{"scope":{"name":"' + values.SCOPE.encode() + b'"},"logRecords":['
_encode = msgspec.json.Encoder().encode


class LogRecord(msgspec.Struct, frozen=True):
    """One record, by the names of the JSON mapping."""

    timeUnixNano: str  # noqa: N815 - OTLP's names
    observedTimeUnixNano: str  # noqa: N815
    severityNumber: int  # noqa: N815
    severityText: str  # noqa: N815
    body: dict[str, Any]
    attributes: list[dict[str, Any]]


class Encoder:
    """Encodes records and requests. ``original`` adds the line as it was written where the message differs."""

    content_type: ClassVar[str] = "application/json"

    def __init__(self, *, original: bool) -> None:
        self._original = original
        self._resources = values.ResourceCache(_resource)

    def records(self, batch: Batch) -> Rows:
        """Encode each record as an element of logRecords, a comma in front."""
        count = len(batch)
        messages = batch.messages if batch.messages is not None else batch.raws
        severities = batch.severities if batch.severities is not None else [9] * count
        originals = (
            [None if raw == text else raw for raw, text in zip(batch.raws, messages, strict=True)]
            if self._original
            else repeat(None)
        )
        details: Iterable[dict[str, Any]] = repeat({}) if batch.attributes is None else batch.attributes
        rows = map(
            LogRecord,
            map(str, map(values.time, batch.times)),
            map(str, map(values.time, batch.stamps)),
            [severity or 9 for severity in severities],
            map(values.TEXTS.__getitem__, severities),
            [{"stringValue": text} for text in messages],
            map(_details, batch.ids, details, originals),
        )
        return Rows.of([b"," + _json(row) for row in rows])

    def resources(self, resources: list[Resource]) -> list[bytes]:
        """Encode what stands in front of each resource's records."""
        return self._resources.of(resources)

    @staticmethod
    def overhead(resource: bytes) -> int:
        """Give the most bytes that a resource adds to a request beside its records; the first has those around it."""
        return len(resource) + len(b"]}]},") + len(b'{"resourceLogs":[]}')

    @staticmethod
    def request(groups: Sequence[tuple[bytes, Sequence[memoryview]]]) -> list[bytes | memoryview]:
        """Encode a request of resources and runs of their records, in pieces."""
        pieces: list[bytes | memoryview] = []
        before = b'{"resourceLogs":['
        for resource, runs in groups:
            pieces += (before + resource, runs[0][1:], *runs[1:])  # no comma in front of the first
            before = b"]}]},"
        return [*pieces, b"]}]}]}" if groups else before + b"]}"]


def _resource(resource: Resource) -> bytes:
    return b'{"resource":' + _json({"attributes": _pairs(values.attributes(resource))}) + b"," + _SCOPE


def _json(value: Any) -> bytes:
    try:
        return _encode(value)
    except UnicodeEncodeError:
        return _encode(_cleaned(msgspec.to_builtins(value)))


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return values.cleaned(value)
    if isinstance(value, dict):
        return {values.cleaned(key): _cleaned(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_cleaned(item) for item in value]
    return value


def _details(uid: str, attributes: dict[str, Any], original: str | None) -> list[dict[str, Any]]:
    pairs = [{"key": values.UID, "value": {"stringValue": uid}}]
    if attributes:
        pairs += [
            {"key": values.named(key), "value": {"stringValue": value} if type(value) is str else _any(value)}
            for key, value in attributes.items()
        ]
    if original is not None:
        pairs.append({"key": values.ORIGINAL, "value": {"stringValue": original}})
    return pairs


def _pairs(attributes: dict[str, Any], depth: int = 1) -> list[dict[str, Any]]:
    return [{"key": str(key), "value": _any(value, depth)} for key, value in attributes.items()]


def _any(value: Any, depth: int = 1) -> dict[str, Any]:
    if isinstance(value, str):
        return {"stringValue": value}
    if value is None:
        return {}
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int) and values.INT_MIN <= value <= values.INT_MAX:
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value if math.isfinite(value) else _NAMES.get(value, "NaN")}
    if isinstance(value, bytes):
        return {"bytesValue": value}
    if isinstance(value, dict | list | tuple) and depth > values.MAX_DEPTH:
        return {"stringValue": values.deep(value)}
    if isinstance(value, dict):
        return {"kvlistValue": {"values": _pairs(value, depth + 1)}}
    if isinstance(value, list | tuple):
        return {"arrayValue": {"values": [_any(item, depth + 1) for item in value]}}
    return {"stringValue": str(value)}


_NAMES = {math.inf: "Infinity", -math.inf: "-Infinity"}
