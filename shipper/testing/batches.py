"""Builders of batches for tests: short to write, distinct by default, random on request."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from typing import Any

from shipper.record import SEVERITIES, Batch, Resource

#: The time of the first record that `make_batch` makes unless told otherwise: 2026-01-02 03:04:05 UTC.
START_NS = 1_767_323_045_000_000_000

_WORDS = ("login", "paid", "größe", "日本", "\U0001f600", "a=b", '"quoted"', "tab\there", "x" * 60, "\\n", "%s", "'")


def make_resource(service: str = "api", *, source: str = "docker", **attributes: str) -> Resource:
    """Make a resource with a container named after the service; ``attributes`` with ``_`` for the dots."""
    given = {name.replace("_", "."): value for name, value in attributes.items()}
    standard = {
        "service.name": service,
        "container.name": f"{service}-1",
        "container.id": hashlib.sha256(service.encode()).hexdigest(),
        "log.iostream": "stdout",
        "host.name": "host-1",
    }
    return Resource(source, standard | given)


def make_batch(
    messages: Sequence[str],
    *,
    start_ns: int = START_NS,
    step_ns: int = 1_000_001,
    level: str | Sequence[str] = "info",
    attributes: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    resource: Resource | Sequence[Resource] | None = None,
    raws: Sequence[str] | None = None,
    parsed: bool = True,
    offset: int = 0,
) -> Batch:
    """Make a batch of one record per message.

    Times rise by ``step_ns`` from ``start_ns``. Ids depend on time, offset and raw line alone, so that the same call
    gives the same ids, as a replay does; give another ``start_ns`` for other records. ``level``, ``attributes`` and
    ``resource`` are one for all or one for each. ``parsed=False`` gives the raw lines only.
    """
    count = len(messages)
    lines = list(messages if raws is None else raws)
    times = [start_ns + index * step_ns for index in range(count)]
    offsets: list[int] = []
    at = offset
    for line in lines:
        offsets.append(at)
        at += _size(line) + 1
    levels = [level] * count if isinstance(level, str) else list(level)
    if attributes is None or isinstance(attributes, Mapping):
        details = [dict(attributes or {}) for _ in range(count)]
    else:
        details = [dict(one) for one in attributes]
    if resource is None:
        resource = make_resource()
    resources = [resource] * count if isinstance(resource, Resource) else list(resource)
    hashes = [_hash(*row) for row in zip(times, offsets, lines, strict=True)]
    batch = Batch(
        times=times,
        stamps=list(times),
        hashes=hashes,
        raws=lines,
        resources=resources,
        offsets=offsets,
        size=at - offset,
    )
    if parsed:
        batch.severities = [SEVERITIES[name] for name in levels]
        batch.messages = list(messages)
        batch.attributes = details
    return batch


def random_batch(rng: random.Random, count: int | None = None, *, start_ns: int | None = None) -> Batch:
    """Make a parsed batch of 1 to 50 records (or ``count``): mixed levels, resources, scripts and attribute types."""
    count = rng.randint(1, 50) if count is None else count
    resources = [make_resource(f"service-{index}") for index in range(rng.randint(1, 4))]
    return make_batch(
        [" ".join(rng.choices(_WORDS, k=rng.randint(1, 6))) for _ in range(count)],
        start_ns=START_NS + rng.randrange(10**15) if start_ns is None else start_ns,
        level=[rng.choice(list(SEVERITIES)) for _ in range(count)],
        attributes=[_random_attributes(rng) for _ in range(count)],
        resource=[rng.choice(resources) for _ in range(count)],
    )


def _random_attributes(rng: random.Random) -> dict[str, Any]:
    values: list[Any] = [
        rng.choice(_WORDS),
        rng.randint(-(2**53), 2**53),
        rng.random(),
        True,
        None,
        ["a", 1],
        {"k": "v"},
    ]
    return {f"key.{index}": rng.choice(values) for index in range(rng.randint(0, 4))}


def _size(line: str) -> int:
    return len(line.encode("utf-8", "surrogatepass"))


def _hash(time_ns: int, offset: int, line: str) -> int:
    text = f"{time_ns} {offset} {line}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=16).digest())
