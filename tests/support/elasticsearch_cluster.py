"""What a cluster of the stand-in holds: its indices, data streams and index templates, and which of them a name means."""

from __future__ import annotations

import fnmatch
import functools
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from support.elasticsearch_index import Fault, Index

_NAME = re.compile(r"[^A-Z\\/*?\"<>| ,#:]+")


class Stream(msgspec.Struct):
    """A data stream: the last of its backing indices is written to."""

    name: str
    template: Mapping[str, Any]
    backing: list[str] = []
    failures: list[dict[str, Any]] = []


class Cluster:
    """One cluster, of Elasticsearch (``elastic``) or of OpenSearch."""

    def __init__(self, *, elastic: bool) -> None:
        self.elastic = elastic
        self.indices: dict[str, Index] = {}
        self.streams: dict[str, Stream] = {}
        self.templates: dict[str, dict[str, Any]] = {}

    def matching(self, pattern: str) -> list[Index]:
        """Give the indices of a name or pattern. Raises Fault when a plain name is unknown."""
        names = [name for name in self.indices if not name.startswith(".") and fnmatch.fnmatch(name, pattern)]
        for name, stream in self.streams.items():
            if fnmatch.fnmatch(name, pattern):
                names += stream.backing
        if not names and "*" not in pattern:
            raise Fault(404, "index_not_found_exception", f"no such index [{pattern}]")
        return [self.indices[name] for name in names]

    def target(self, name: str, *, create: bool) -> tuple[Index, Stream | None]:
        """Give the index that a document of this name goes to, made if need be and ``create`` allows it."""
        if name in self.streams:
            stream = self.streams[name]
            return self.indices[stream.backing[-1]], stream
        if name in self.indices:
            return self.indices[name], None
        if not _NAME.fullmatch(name) or name[0] in "-_+":
            raise Fault(400, "invalid_index_name_exception", f"Invalid index name [{name}], must be lowercase")
        if not create:
            text = f"no such index [{name}] and [action.auto_create_index] is [false]"
            raise Fault(404, "index_not_found_exception", text)
        template = self._template(name)
        if "data_stream" in template:
            self.streams[name] = Stream(name, template)
            return self.rollover(name), self.streams[name]
        self.indices[name] = Index(name, template)
        return self.indices[name], None

    def rollover(self, name: str) -> Index:
        """Give a data stream a new backing index to write to."""
        stream = self.streams[name]
        index = Index(f".ds-{name}-{len(stream.backing) + 1:06d}", stream.template)
        stream.backing.append(index.name)
        self.indices[index.name] = index
        return index

    def _template(self, name: str) -> Mapping[str, Any]:
        known = [one for one in self.templates.values() if any(fnmatch.fnmatch(name, p) for p in one["index_patterns"])]
        if self.elastic and fnmatch.fnmatch(name, "logs-*-*"):
            known.append(_builtin_template())
        return max(known, key=lambda one: int(one.get("priority", 0)), default={})


@functools.cache
def _builtin_template() -> dict[str, Any]:
    """Give what Elasticsearch has for ``logs-*-*`` out of the box, as far as it matters here."""
    return {
        "index_patterns": ["logs-*-*"],
        "priority": 100,
        "data_stream": {},
        "template": {"mappings": {"properties": {"@timestamp": {"type": "date"}}, "all_strings_to_keywords": True}},
    }
