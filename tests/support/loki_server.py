"""A stand-in for Grafana Loki 3: its push and query_range, with its limits, its texts and its ways to lose a record.

    with LokiServer() as server:
        sink = server.sink()                    # the section of a sink that writes and reads here
        ...
        assert server.messages() == [...]

As the real one it stores the rest of a push of which it refuses a part (400), refuses all or nothing for the tenant's rate
(429), drops what equals an entry of the stream's current block, and forgets the refusal of any stream but the last of a
push (``masks``). ``python -m support.loki_server [--port N] [--discard]`` runs one, which tells its URL first; with
``--discard`` it answers every push at once with 204 and looks at none.
"""

from __future__ import annotations

import argparse
import signal
import ssl
import time
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from shipper.testing.http_server import HttpServer, Reply, Request
from support.logql import compile_query
from support.loki_wire import Pairs, Pushed, decode, labels_text, protobuf_size

_SECOND = 1_000_000_000
#: Labels from which Loki makes service_name, the first that is there.
_SERVICE = (
    "service", "app", "application", "app_name", "name", "app_kubernetes_io_name", "container", "container_name",
    "k8s_container_name", "component", "workload", "job", "k8s_job_name",
)  # fmt: skip


class LokiLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Loki's limits and their defaults (pkg/validation/limits.go); sizes in bytes, times in seconds."""

    max_line_size: int = 256 << 10
    max_label_names_per_series: int = 15
    max_label_name_length: int = 1024
    max_label_value_length: int = 2048
    allow_structured_metadata: bool = True
    max_structured_metadata_size: int = 64 << 10
    max_structured_metadata_entries_count: int = 128
    ingestion_rate: int = 4 << 20
    ingestion_burst: int = 6 << 20
    per_stream_rate: int = 3 << 20
    per_stream_burst: int = 15 << 20
    max_global_streams_per_user: int = 5000
    reject_old_samples: bool = True
    reject_old_samples_max_age: float = 7 * 86_400
    creation_grace_period: float = 600
    max_chunk_age: float = 7200
    chunk_block_size: int = 256 << 10
    max_recv_msg_size: int = 100 << 20
    grpc_server_max_recv_msg_size: int = 4 << 20
    max_returned_stream_errors: int = 10
    max_entries_limit_per_query: int = 5000
    max_query_length: float = 721 * 3600


class _Bucket:
    """The token bucket of golang.org/x/time/rate."""

    def __init__(self, rate: int, burst: int) -> None:
        self._rate, self._burst = rate, burst
        self._tokens, self._at = float(burst), 0

    def allows(self, amount: int, now_ns: int) -> bool:
        self._tokens = min(self._burst, self._tokens + max(0, now_ns - self._at) / _SECOND * self._rate)
        self._at = now_ns
        if amount > self._tokens:
            return False
        self._tokens -= amount
        return True


class _RefusedError(Exception):
    """A push is answered with this status and text."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class _Stream:
    """One stream in an ingester's memory (pkg/ingester/stream.go)."""

    def __init__(self, labels: Pairs, limits: LokiLimits) -> None:
        self.labels = labels
        self.text = labels_text(labels)
        self.entries: list[tuple[int, int, str, Pairs]] = []
        self.count = 0
        self._limits = limits
        self._bucket = _Bucket(limits.per_stream_rate, limits.per_stream_burst)
        self._last: Any = None
        self._newest: int | None = None
        self._block: set[Any] = set()
        self._block_size = 0

    def push(
        self, entries: Sequence[tuple[int, str, Pairs]], now_ns: int, user: str, *, metadata: bool, keep: bool
    ) -> _RefusedError | None:
        """Store what may be stored. ``metadata`` says whether it counts in the comparison of entries (3.7)."""
        window = int(self._limits.max_chunk_age / 2 * _SECOND)
        behind: list[tuple[int, int]] = []
        stored: list[tuple[Any, int, str, Pairs]] = []
        newest, last, size = self._newest, self._last, 0
        for time_ns, line, pairs in entries:
            key = (time_ns, line, pairs) if metadata else (time_ns, line)
            if key == last:
                continue
            if newest is not None and time_ns < newest - window:
                behind.append((time_ns, newest - window))
                continue
            last, newest = key, time_ns if newest is None else max(newest, time_ns)
            size += len(line.encode()) + _metadata_size(pairs)
            stored.append((key, time_ns, line, pairs))
        if not self._bucket.allows(size, now_ns):
            reasons = [(time_ns, self._too_fast(line, pairs)) for _, time_ns, line, pairs in stored]
            return _RefusedError(429, self._refusal_text(reasons, len(entries), user))
        self._newest, self._last = newest, last
        for key, time_ns, line, pairs in stored:
            if key in self._block:
                continue
            self._block.add(key)
            self._block_size += len(line) + _metadata_size(pairs)
            if self._block_size > self._limits.chunk_block_size:
                self._block, self._block_size = set(), 0
            self.count += 1
            if keep:
                insort(self.entries, (time_ns, self.count, line, pairs))
        if not behind:
            return None
        reasons = [(time_ns, _too_far_behind(time_ns, cutoff)) for time_ns, cutoff in behind]
        return _RefusedError(400, self._refusal_text(reasons, len(entries), user))

    def _too_fast(self, line: str, pairs: Pairs) -> str:
        limit, size = _bytes(self._limits.per_stream_rate), _bytes(len(line.encode()) + _metadata_size(pairs))
        return (
            f"Per stream rate limit exceeded (limit: {limit}/sec) while attempting to ingest for stream '{self.text}'"
            f" totaling {size}, consider splitting a stream via additional labels or contact your Loki administrator to"
            " see if the limit can be increased"
        )

    def _refusal_text(self, reasons: Sequence[tuple[int, str]], total: int, user: str) -> str:
        shown = reasons[: self._limits.max_returned_stream_errors]
        listed = "".join([f"entry with timestamp {_go_time(at)} ignored, reason: '{why}',\n" for at, why in shown])
        return f"{listed}user '{user}', total ignored: {len(reasons)} out of {total} for stream: {self.text}"


class LokiServer(HttpServer):
    """Loki on a free port. What may be changed while it runs: ``limits``, ``blocked`` and the switches.

    ``auth_enabled`` asks for X-Scope-OrgID; ``login`` is the only value of Authorization that a proxy in front lets
    through. ``metadata_counts`` is false for Loki before 3.7, which folds entries that differ in structured metadata
    alone. ``masks`` is what a real ingester does; false tells the first refusal. ``blocked`` is the status that
    block_ingestion_status_code gives. ``clock`` gives nanoseconds since 1970. ``keep=False`` only counts (``count``).
    """

    def __init__(
        self,
        *,
        limits: LokiLimits | None = None,
        auth_enabled: bool = False,
        login: str = "",
        metadata_counts: bool = True,
        masks: bool = True,
        keep: bool = True,
        clock: Callable[[], int] = time.time_ns,
        tls: ssl.SSLContext | None = None,
        port: int = 0,
    ) -> None:
        self.limits = limits or LokiLimits()
        self.auth_enabled, self.login = auth_enabled, login
        self.metadata_counts, self.masks, self.keep = metadata_counts, masks, keep
        self.blocked: int | None = None
        self.clock = clock
        self._streams: dict[tuple[str, Pairs], _Stream] = {}
        self._buckets: dict[str, tuple[LokiLimits, _Bucket]] = {}
        super().__init__(tls=tls, port=port)

    # What tests ask

    def sink(self, **changes: Any) -> dict[str, Any]:
        """Give the section of a sink that writes, and reads, here."""
        return {"type": "loki", "endpoint": self.url, **changes}

    @property
    def count(self) -> int:
        """Entries stored, doubles included."""
        return sum(stream.count for stream in self._streams.values())

    @property
    def streams(self) -> list[dict[str, str]]:
        """The labels of every stream, service_name included."""
        return [dict(stream.labels) for stream in self._streams.values()]

    def entries(self) -> list[tuple[dict[str, str], int, str, dict[str, str]]]:
        """Every entry stored, doubles included, in order of time: labels, nanoseconds, line, structured metadata."""
        found = [(at, n, s.labels, line, pairs) for s in self._streams.values() for at, n, line, pairs in s.entries]
        return [(dict(labels), at, line, dict(pairs)) for at, _, labels, line, pairs in sorted(found)]

    def messages(self) -> list[str]:
        """The line of every record stored, doubles included, in order of time; lines in parts as one."""
        return [line for _, line in self._records()]

    def ids(self) -> list[str]:
        """The id of every record stored, doubles included, in order of time."""
        return [record_id for record_id, _ in self._records()]

    def _records(self) -> Iterator[tuple[str, str]]:
        parts: dict[str, list[str]] = {}
        for _, _, line, pairs in self.entries():
            record_id = pairs.get("id", "")
            number, _, total = pairs.get("part", "").partition("/")
            if not total:
                yield record_id, line
                continue
            lines = [*parts.pop(record_id, []), line]
            if number == total:
                yield record_id, "".join(lines)
            else:
                parts[record_id] = lines

    def restart(self) -> None:
        """Forget what is in memory: heads of streams and blocks. What is stored stays."""
        with self._lock:
            for key, stream in self._streams.items():
                fresh = self._streams[key] = _Stream(stream.labels, self.limits)
                fresh.entries, fresh.count = stream.entries, stream.count

    # HTTP

    def time(self) -> float:
        """See `HttpServer.time`."""
        return self.clock() / _SECOND

    def answer(self, request: Request) -> Reply:
        """See `HttpServer.answer`."""
        if self.login and request.headers.get("authorization") != self.login:
            return Reply(401, b"401 Unauthorized")
        if request.path == "/ready":
            return Reply(200, b"ready\n")
        user = request.headers.get("x-scope-orgid", "") if self.auth_enabled else "fake"
        if not user:
            return Reply(401, b"no org id")
        routes = {
            "/loki/api/v1/push": ("POST", self._push),
            "/loki/api/v1/query_range": ("GET", self._query_range),
            "/loki/api/v1/labels": ("GET", self._labels),
        }
        if request.path not in routes:
            return Reply(404, b"404 page not found\n")
        method, handle = routes[request.path]
        if request.method != method:
            return Reply(405)
        try:
            return handle(request, user)
        except _RefusedError as refused:
            return Reply(refused.status, f"{refused}\n".encode())

    # Writing

    def _push(self, request: Request, user: str) -> Reply:
        most = self.limits.max_recv_msg_size
        if len(request.body) > most:
            raise _RefusedError(413, f"request body too large: {len(request.body)} bytes, limit: {most} bytes")
        streams = decode(request)
        if not streams:
            raise _RefusedError(422, "error at least one valid stream is required for ingestion")
        now = self.clock()
        errors: list[str] = []
        valid = list(self._validated(streams, now, errors))
        invalid = _RefusedError(400, _grouped(errors)) if errors else None
        if not valid:
            raise invalid or _RefusedError(422, "error at least one valid stream is required for ingestion")
        if self.blocked is not None:
            if self.blocked == 200:
                return Reply(204)  # a block with 200 loses in silence
            until = _rfc3339(now + 3600 * _SECOND)
            raise _RefusedError(
                self.blocked, f"ingestion blocked for user {user} until '{until}' with status code '{self.blocked}'"
            )
        self._check_rate(valid, user, now)
        size, most = protobuf_size(valid), self.limits.grpc_server_max_recv_msg_size
        if size > most:
            text = (
                f"rpc error: code = ResourceExhausted desc = grpc: received message larger than max ({size} vs. {most})"
            )
            raise _RefusedError(500, text)
        refused = self._ingest(valid, user, now)
        if refused is not None:
            raise refused  # it hides what the distributor refused
        if invalid is not None:
            raise invalid
        return Reply(204)

    def _validated(self, streams: Sequence[Pushed], now: int, errors: list[str]) -> Iterator[Pushed]:
        """Give what pkg/distributor/validator.go lets through."""
        limits = self.limits
        oldest = now - int(limits.reject_old_samples_max_age * _SECOND)
        newest = now + int(limits.creation_grace_period * _SECOND)
        for stream in streams:
            labels = _with_service_name(stream.labels)
            text = labels_text(labels)
            wrong = self._wrong_labels(labels, labels_text(stream.labels))
            if wrong:
                errors.append(wrong)
                continue
            level = dict(labels).get("level", "unknown")
            entries: list[tuple[int, str, Pairs]] = []
            for time_ns, line, pairs in stream.entries:
                size, length = _metadata_size(pairs), len(line.encode())
                if limits.reject_old_samples and time_ns < oldest:
                    errors.append(
                        f"entry for stream '{text}' has timestamp too old: {_rfc3339(time_ns)}, oldest acceptable"
                        f" timestamp is: {_rfc3339(oldest)}"
                    )
                elif time_ns > newest:
                    errors.append(f"entry for stream '{text}' has timestamp too new: {_rfc3339(time_ns)}")
                elif length > limits.max_line_size:
                    errors.append(
                        f"Max entry size '{limits.max_line_size}' bytes exceeded for stream '{text}' while adding an entry"
                        f" with length '{length}' bytes"
                    )
                elif pairs and not limits.allow_structured_metadata:
                    errors.append(
                        f"stream '{text}' includes structured metadata, but this feature is disallowed. Please see"
                        " `limits_config.allow_structured_metadata` or contact your Loki administrator to enable it."
                    )
                elif size > limits.max_structured_metadata_size:
                    errors.append(
                        f"stream '{text}' has structured metadata too large: '{size}' bytes, limit:"
                        f" '{limits.max_structured_metadata_size}' bytes. Please see"
                        " `limits_config.max_structured_metadata_size` or contact your Loki administrator to increase it."
                    )
                elif len(pairs) > limits.max_structured_metadata_entries_count:
                    errors.append(
                        f"stream '{text}' has too many structured metadata labels: '{len(pairs)}', limit:"
                        f" '{limits.max_structured_metadata_entries_count}'. Please see"
                        " `limits_config.max_structured_metadata_entries_count` or contact your Loki administrator to"
                        " increase it."
                    )
                else:
                    entries.append((time_ns, line, (*pairs, ("detected_level", level))))
            if entries:
                yield Pushed(labels, entries)

    def _wrong_labels(self, labels: Pairs, text: str) -> str:
        limits = self.limits
        if text == "{}":
            return "error at least one label pair is required per stream"
        count = len(labels) - 1  # service_name, which Loki adds
        if count > limits.max_label_names_per_series:
            return f"entry for stream '{text}' has {count} label names; limit {limits.max_label_names_per_series}"
        last = ""
        for name, value in labels:
            if name == last:
                return f"stream '{text}' has duplicate label name: '{name}'"
            last = name
            if len(name) > limits.max_label_name_length:
                return f"stream '{text}' has label name too long: '{name}'"
            if len(value.encode()) > limits.max_label_value_length:
                return f"stream '{text}' has label value too long: '{value}'"
        return ""

    def _check_rate(self, streams: Sequence[Pushed], user: str, now: int) -> None:
        """All or nothing for the tenant, line and structured metadata counted."""
        limits = self.limits
        known = self._buckets.get(user)
        if known is None or known[0] is not limits:
            known = self._buckets[user] = (limits, _Bucket(limits.ingestion_rate, limits.ingestion_burst))
        count = sum(len(stream.entries) for stream in streams)
        size = sum(
            len(line.encode()) + _metadata_size(pairs) for stream in streams for _, line, pairs in stream.entries
        )
        if not known[1].allows(size, now):
            raise _RefusedError(
                429,
                f"Ingestion rate limit exceeded for user {user} (limit: {limits.ingestion_rate} bytes/sec) while attempting"
                f" to ingest '{count}' lines totaling '{size}' bytes, reduce log volume or contact your Loki administrator"
                " to see if the limit can be increased",
            )

    def _ingest(self, streams: Sequence[Pushed], user: str, now: int) -> _RefusedError | None:
        """Push stream after stream (pkg/ingester/instance.go): each one's result takes the place of that before it."""
        result: _RefusedError | None = None
        for pushed in streams:
            stream = self._streams.get((user, pushed.labels))
            if stream is None:
                if len(self._streams) >= self.limits.max_global_streams_per_user:
                    found: _RefusedError | None = _RefusedError(
                        429,
                        f"Maximum active stream limit exceeded when trying to create stream {labels_text(pushed.labels)},"
                        " reduce the number of active streams (reduce labels or reduce label values), or contact your Loki"
                        f" administrator to see if the limit can be increased, user: '{user}'",
                    )
                    result = found if self.masks or result is None else result
                    continue
                stream = self._streams[user, pushed.labels] = _Stream(pushed.labels, self.limits)
            found = stream.push(pushed.entries, now, user, metadata=self.metadata_counts, keep=self.keep)
            result = found if self.masks or result is None else result
        return result

    # Reading

    def _labels(self, request: Request, user: str) -> Reply:
        del request
        names = sorted({name for (tenant, labels) in self._streams if tenant == user for name, _ in labels})
        return _json({"status": "success", "data": names})

    def _query_range(self, request: Request, user: str) -> Reply:
        asked = request.query
        now = self.clock()
        start, end = _time(asked.get("start"), now - 3600 * _SECOND), _time(asked.get("end"), now)
        limit = int(asked.get("limit", "100"))
        direction = asked.get("direction", "backward").lower()
        if direction not in {"forward", "backward"}:
            raise ValueError(f"invalid direction '{direction}'")
        if end <= start:
            raise ValueError("end timestamp must not be before or equal to start time")
        if limit <= 0:
            raise ValueError("limit must be a positive value")
        query = compile_query(asked.get("query", ""))
        most = self.limits.max_entries_limit_per_query
        if limit > most:
            raise ValueError(
                f"max entries limit per query exceeded, limit > max_entries_limit_per_query ({limit} > {most})"
            )
        longest = self.limits.max_query_length
        if end - start > longest * _SECOND:
            length, most_length = _go_duration((end - start) // _SECOND), _prometheus_duration(int(longest))
            raise ValueError(f"the query time range exceeds the limit (query length: {length}, limit: {most_length})")
        found = []
        for (tenant, _), stream in self._streams.items():
            labels = dict(stream.labels)
            if tenant != user or not query.selects(labels):
                continue
            low = bisect_left(stream.entries, (start,))
            high = bisect_left(stream.entries, (end,))
            for time_ns, number, line, pairs in stream.entries[low:high]:
                if query.keeps(line, labels | dict(pairs)):
                    found.append((time_ns, stream.text, number, line, pairs, labels))
        found.sort(key=lambda one: one[:3], reverse=direction == "backward")
        categorize = "categorize-labels" in request.headers.get("x-loki-response-encoding-flags", "")
        return _json(_answer(found[:limit], categorize=categorize))


def _answer(found: Sequence[tuple[int, str, int, str, Pairs, Mapping[str, str]]], *, categorize: bool) -> Any:
    """Group entries by stream; without the flag structured metadata counts as labels."""
    streams: dict[Any, tuple[Mapping[str, str], list[Any]]] = {}
    for time_ns, text, _, line, pairs, labels in found:
        if categorize:
            beside = {"structuredMetadata": dict(pairs)} if pairs else {}
            streams.setdefault(text, (labels, []))[1].append([str(time_ns), line, beside])
        else:
            streams.setdefault((text, pairs), ({**labels, **dict(pairs)}, []))[1].append([str(time_ns), line])
    result = [{"stream": labels, "values": values} for labels, values in streams.values()]
    data: dict[str, Any] = {"resultType": "streams", "result": result, "stats": {}}
    if categorize:
        data["encodingFlags"] = ["categorize-labels"]
    return {"status": "success", "data": data}


class DiscardingServer(HttpServer):
    """Answers every push at once with 204 and keeps nothing: what a benchmark sends to."""

    def answer(self, request: Request) -> Reply:
        """See `HttpServer.answer`."""
        del request
        return Reply(204)

    def handle(self, request: Request) -> Reply:
        """Answer without noting the request."""
        return self.answer(request)


def _too_far_behind(time_ns: int, cutoff: int) -> str:
    stamps = f"entry timestamp is: {_rfc3339(time_ns)}, oldest acceptable timestamp is: {_rfc3339(cutoff)}"
    return f"entry too far behind, {stamps}"


def _json(value: Any) -> Reply:
    return Reply(200, msgspec.json.encode(value), {"Content-Type": "application/json; charset=UTF-8"})


def _with_service_name(labels: Pairs) -> Pairs:
    given = dict(labels)
    if "service_name" in given or not given:
        return labels
    name = next((given[one] for one in _SERVICE if one in given), "unknown_service")
    return tuple(sorted([*labels, ("service_name", name)]))


def _metadata_size(pairs: Pairs) -> int:
    return sum(len(name) + len(value.encode()) for name, value in pairs if name != "detected_level")


def _grouped(errors: Sequence[str]) -> str:
    """Tell errors as GroupedErrors of pkg/util/errors.go does."""
    counts = Counter(errors)
    return "; ".join(
        f"{count} errors like: {text}" if len(counts) > 1 or count > 1 else text for text, count in counts.items()
    )


def _time(text: str | None, otherwise: int) -> int:
    """Read a time as pkg/loghttp/params.go does: seconds with a fraction or of ten digits, nanoseconds, RFC 3339."""
    if not text:
        return otherwise
    if text.lstrip("-").isdecimal():
        return int(text) * _SECOND if len(text) <= 10 else int(text)
    try:
        return int(float(text) * _SECOND) if "." in text and "T" not in text else _from_rfc3339(text)
    except ValueError as error:
        raise ValueError(f'could not parse "{text}" as a time') from error


def _from_rfc3339(text: str) -> int:
    head, _, rest = text.rstrip("Z").partition(".")
    return int(datetime.fromisoformat(head + "+00:00").timestamp()) * _SECOND + int(rest.ljust(9, "0")[:9] or 0)


def _rfc3339(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns // _SECOND, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _go_time(time_ns: int) -> str:
    """Print a time as Go's Time.String does."""
    fraction = f".{time_ns % _SECOND:09d}".rstrip("0").rstrip(".")
    return datetime.fromtimestamp(time_ns // _SECOND, UTC).strftime(f"%Y-%m-%d %H:%M:%S{fraction} +0000 UTC")


def _go_duration(seconds: int) -> str:
    return f"{seconds // 3600}h{seconds // 60 % 60}m{seconds % 60}s"


def _prometheus_duration(seconds: int) -> str:
    units = (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1))
    found, rest = "", seconds
    for unit, length in units:
        if rest >= length:
            found, rest = f"{found}{rest // length}{unit}", rest % length
    return found or "0s"


def _bytes(size: int) -> str:
    for unit, name in ((1 << 20, "MB"), (1 << 10, "KB")):
        if size >= unit:
            return f"{size / unit:.1f}".rstrip("0").rstrip(".") + name
    return f"{size}B"


def main() -> None:
    """Run a server until it is told to stop."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--port", type=int, default=0, help="the port to listen on (default: a free one)")
    parser.add_argument("--discard", action="store_true", help="answer every push with 204 and look at none")
    args = parser.parse_args()
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT])  # in all threads: they wait for one
    server = DiscardingServer(port=args.port) if args.discard else LokiServer(port=args.port)
    with server:
        print(server.url, flush=True)  # noqa: T201 - the first line is what its starter waits for
        signal.sigwait([signal.SIGTERM, signal.SIGINT])


if __name__ == "__main__":
    main()
