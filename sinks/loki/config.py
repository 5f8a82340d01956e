"""The section of a loki sink in the configuration."""

from __future__ import annotations

import re
from typing import Annotated
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from shipper.units import parse_duration, parse_size
from sinks import _http

#: Labels unless the configuration says otherwise. ``job`` is the same for all that we send: the reader selects by it.
LABELS = {
    "job": "shipper", "service": "{service}", "container": "{container}", "stream": "{stream}", "level": "{level}",
    "host": "{host}",
}  # fmt: skip
#: The label of streams for records that are too late for their own.
BACKFILL = "backfill"
#: Labels a stream may have by default (Loki's max_label_names_per_series), one left for `BACKFILL`.
MOST_LABELS = 14
#: Bytes that ``max_line_size`` may be.
LEAST_LINE, MOST_LINE = 1024, 2 << 20
#: What a label's template may name besides attributes of the resource.
WORDS = frozenset(["service", "container", "stream", "host", "source", "level"])

_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_PLACE = re.compile(r"\{([^{}]*)\}")
#: Templates that never come out empty.
_ALWAYS = ("{level}", "{source}")


class LokiConfig(_http.LoginConfig, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Push records to Grafana Loki 3 or later."""

    endpoint: Annotated[
        str, Meta(description="URL of Loki; /loki/api/v1/push is added unless it names a path that ends in /push.")
    ]
    tenant: Annotated[str, Meta(description="The tenant, sent as X-Scope-OrgID.")] = ""
    labels: Annotated[
        dict[str, str],
        Meta(
            description="Labels of the streams: name to template. {service}, {container}, {stream}, {host}, {source},"
            " {level} and attributes of the resource such as {container.image.name} are filled in; a label that comes"
            " out empty is left out."
        ),
    ] = msgspec.field(default_factory=LABELS.copy)
    line: Annotated[
        str,
        Meta(
            description="What the line is: raw, as the application wrote it, or the parsed record as json or logfmt.",
            pattern="^(raw|json|logfmt)$",
        ),
    ] = "raw"
    encoding: Annotated[
        str,
        Meta(
            description="json (gzipped) or protobuf (snappy): more CPU here, less at Loki; needs the package cramjam.",
            pattern="^(json|protobuf)$",
        ),
    ] = "json"
    structured_metadata: Annotated[
        str,
        Meta(
            description="What stands beside each line: all, the id and what of the resource is no label; id alone; or"
            " none, for a Loki that does not allow it.",
            pattern="^(all|id|none)$",
        ),
    ] = "all"
    max_line_size: Annotated[str | int, Meta(description="Loki's max_line_size: longer lines are sent in parts.")] = (
        "256KiB"
    )
    max_age: Annotated[
        str,
        Meta(
            description="Loki's reject_old_samples_max_age: older records are dead-lettered without asking; empty if"
            " Loki takes any age."
        ),
    ] = "7d"
    out_of_order_window: Annotated[
        str, Meta(description="How far behind its stream's newest a record may be: half of Loki's max_chunk_age.")
    ] = "1h"

    def __post_init__(self) -> None:
        """Check what types cannot. Raises ValueError."""
        self.check_http()
        _http.check_url("endpoint", self.endpoint)
        self.check_login()
        check_labels(self.labels)
        if not LEAST_LINE <= parse_size(self.max_line_size) <= MOST_LINE:
            raise ValueError("max_line_size: from 1KiB to 2MiB; Loki takes no push above 4 MiB, whatever its limit is")
        if self.max_age and not parse_duration(self.max_age):
            raise ValueError("max_age: leave it empty for any age; 0 would refuse everything")
        if not parse_duration(self.out_of_order_window):
            raise ValueError("out_of_order_window: must be more than 0")

    @property
    def base(self) -> str:
        """The endpoint without the path of the push."""
        return self.endpoint.rstrip("/").removesuffix("/push").removesuffix("/loki/api/v1")

    @property
    def levels(self) -> bool:
        """Whether a label tells the level."""
        return any("level" in places(template) for template in self.labels.values())

    @property
    def push_path(self) -> str:
        """The path of pushes below `base`."""
        path = urlsplit(self.endpoint).path.rstrip("/")
        return path[len(urlsplit(self.base).path) :] if path.endswith("/push") else "/loki/api/v1/push"

    def authorization(self) -> dict[str, str]:
        """Give the headers that say who we are. Raises ParkedError when a secret's file cannot be read."""
        tenant = {"X-Scope-OrgID": self.tenant} if self.tenant else {}
        return {**tenant, **self.login()}


def check_labels(labels: dict[str, str]) -> None:
    """Check names and templates of labels. Raises ValueError."""
    if len(labels) > MOST_LABELS:
        raise ValueError(f"labels: {len(labels)} labels; Loki takes 15, and one is kept for {BACKFILL}")
    for name, template in labels.items():
        if not _LABEL.fullmatch(name) or name.startswith("__") or name == BACKFILL:
            raise ValueError(
                f"labels: {name!r} cannot be a label; letters, digits and _ only, not __ in front, and not {BACKFILL}"
            )
        for word in places(template):
            if word not in WORDS and "." not in word:
                known = ", ".join(sorted(WORDS))
                raise ValueError(
                    f"labels.{name}: {{{word}}} is neither one of {known} nor an attribute such as container.id"
                )
        if re.search("[{}]", _PLACE.sub("", template)):
            raise ValueError(f"labels.{name}: a brace without its partner in {template!r}")
    if anchor(labels) is None:
        raise ValueError(
            "labels: one must always have a value, for reading back: a fixed text such as job: shipper, or {level}"
        )


def places(template: str) -> list[str]:
    """Give what stands in the braces of a template."""
    return _PLACE.findall(template)


def anchor(labels: dict[str, str]) -> tuple[str, str] | None:
    """Give the label that every stream of ours has and its value, empty if it varies; ``None`` if there is none."""
    for name, template in labels.items():
        if template and not places(template):
            return name, template
    for name, template in labels.items():
        if template in _ALWAYS or _PLACE.sub("", template):
            return name, ""
    return None
