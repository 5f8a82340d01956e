"""Every number the daemon tells about itself, declared in one table.

The counters are plain integers behind one lock, touched once per batch. prometheus-client is not imported here: it
costs 60 ms and 14 MiB, so only the HTTP server imports it, when /metrics is asked for (`shipper.telemetry.http`).

Limit of our own: at most `MAX_SERIES` label sets per metric, so that ten thousand containers cannot drown the
Prometheus that scrapes us; what comes later is summed under ``other``.
"""

from __future__ import annotations

import threading
from typing import Literal

import msgspec

from shipper import __version__
from shipper.native import compiled

#: Label sets kept apart per metric; the rest is summed under the label value ``other``.
MAX_SERIES = 200
OTHER = "other"

Labels = tuple[str, ...]


class Metric(msgspec.Struct, frozen=True):
    """One metric: its full name, its kind, what it says, and its label names."""

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    labels: Labels = ()


LINES_READ = Metric("shipper_lines_read_total", "counter", "Lines read from files.", ("source",))
BYTES_READ = Metric("shipper_bytes_read_total", "counter", "Bytes of source text read from files.", ("source",))
LAG_BYTES = Metric("shipper_source_lag_bytes", "gauge", "Bytes of a file that no sink has been given yet.", ("file",))
LAG_SECONDS = Metric(
    "shipper_source_lag_seconds", "gauge", "How long the file that is furthest behind has been behind, in seconds."
)
ACKED = Metric("shipper_sink_lines_acked_total", "counter", "Lines that a sink has taken durably.", ("sink",))
RETRIES = Metric(
    "shipper_sink_retries_total", "counter", "Writes that failed and are tried again, by error code.", ("sink", "code")
)
RESTARTS = Metric(
    "shipper_sink_restarts_total", "counter", "Times that a delivery began anew after a fault of our own.", ("sink",)
)
MAYBE_DOUBLED = Metric(
    "shipper_sink_maybe_doubled_total",
    "counter",
    "Requests sent again although the backend may have stored them and cannot tell doubles by id.",
    ("sink",),
)
DIVERTED = Metric(
    "shipper_sink_diverted_total",
    "counter",
    "Lines that the destination took but put aside, such as into a failure store, by reason.",
    ("sink", "reason"),
)
FAULTS = Metric(
    "shipper_faults_total",
    "counter",
    "Faults of our own code that were contained, by stage; each cost one record or one attempt, and is logged.",
    ("stage",),
)
DROPPED = Metric(
    "shipper_dropped_total", "counter", "Lines that will never reach a sink, against the user's wish.", ("reason",)
)
PASSED_OVER = Metric(
    "shipper_passed_over_total",
    "counter",
    "Lines that a sink was not given because it cannot take them, by reason: too_old says that they were older than it"
    " takes when their file was first seen.",
    ("sink", "reason"),
)
FILTERED = Metric("shipper_filtered_total", "counter", "Lines left out by a rule of the user.", ("transform",))
LOST_BYTES = Metric(
    "shipper_lost_bytes_total", "counter", "Bytes that were gone before they could be read.", ("cause",)
)
SPOOL = Metric("shipper_spool_bytes", "gauge", "Bytes on disk that wait for a sink.", ("sink",))
SPOOL_LIMIT = Metric("shipper_spool_limit_bytes", "gauge", "Bytes on disk that may wait for a sink.", ("sink",))
BUFFER = Metric("shipper_buffer_bytes", "gauge", "Bytes of source text in memory that wait for a sink.", ("sink",))
OLDEST = Metric(
    "shipper_oldest_unacked_seconds", "gauge", "Age of the oldest batch that a sink has not taken yet.", ("sink",)
)
DEAD_LETTERS = Metric(
    "shipper_dead_letter_total",
    "counter",
    "Lines that a sink refused for good, kept in its dead-letter file.",
    ("sink",),
)
UNREADABLE = Metric("shipper_files_unreadable", "gauge", "Files that match a source and cannot be read.")
OPEN = Metric("shipper_files_open", "gauge", "Files held open.")
CONFIG_VALID = Metric(
    "shipper_config_valid", "gauge", "1 when the configuration file as last seen is the one that runs, 0 when refused."
)
CONFIG_HASH = Metric("shipper_config_hash", "gauge", "The first 48 bits of the running configuration's hash.")
RELOADS = Metric("shipper_reloads_total", "counter", "Reloads of the configuration, by result.", ("result",))
BUILD = Metric(
    "shipper_build_info",
    "gauge",
    "Always 1; the labels say which version runs, and whether its form is compiled or pure.",
    ("version", "form"),
)

#: Every metric there is, in the order of the reference page.
METRICS = (
    LINES_READ,
    BYTES_READ,
    LAG_BYTES,
    LAG_SECONDS,
    ACKED,
    RETRIES,
    RESTARTS,
    MAYBE_DOUBLED,
    DIVERTED,
    FAULTS,
    DROPPED,
    PASSED_OVER,
    FILTERED,
    LOST_BYTES,
    SPOOL,
    SPOOL_LIMIT,
    BUFFER,
    OLDEST,
    DEAD_LETTERS,
    UNREADABLE,
    OPEN,
    CONFIG_VALID,
    CONFIG_HASH,
    RELOADS,
    BUILD,
)


class Metrics:
    """The daemon's counters and gauges. Every method is thread-safe and cheap enough to call once per batch."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[str, dict[Labels, float]] = {metric.name: {} for metric in METRICS}
        self._lag: dict[str, tuple[int, float]] = {}
        self._set(BUILD, (__version__, "pure" if compiled is None else "compiled"), 1)
        for metric in (UNREADABLE, OPEN):
            self._set(metric, (), 0)

    def lines_read(self, source: str, lines: int, size: int) -> None:
        """Count lines and bytes that a source has read."""
        with self._lock:
            self._add(LINES_READ, (source,), lines)
            self._add(BYTES_READ, (source,), size)

    def acked(self, sink: str, lines: int) -> None:
        """Count lines that a sink has taken."""
        with self._lock:
            self._add(ACKED, (sink,), lines)

    def retried(self, sink: str, code: str) -> None:
        """Count one failed write that will be tried again; ``code`` is the backend's own, or ``""``."""
        with self._lock:
            self._add(RETRIES, (sink, code or "none"), 1)

    def restarted(self, sink: str) -> None:
        """Count one fault of our own after which a delivery began anew."""
        with self._lock:
            self._add(RESTARTS, (sink,), 1)

    def maybe_doubled(self, sink: str) -> None:
        """Count one request whose outcome is unknown at a backend that cannot tell doubles by id."""
        with self._lock:
            self._add(MAYBE_DOUBLED, (sink,), 1)

    def diverted(self, sink: str, reason: str, lines: int) -> None:
        """Count lines that a destination took but put aside."""
        with self._lock:
            self._add(DIVERTED, (sink, reason), lines)

    def fault(self, stage: str, count: int = 1) -> None:
        """Count faults of our own code that were contained."""
        with self._lock:
            self._add(FAULTS, (stage,), count)

    def dropped(self, reason: str, lines: int) -> None:
        """Count lines that were given up."""
        with self._lock:
            self._add(DROPPED, (reason,), lines)

    def passed_over(self, sink: str, reason: str, lines: int) -> None:
        """Count lines that a sink was not given because it cannot take them."""
        with self._lock:
            self._add(PASSED_OVER, (sink, reason), lines)

    def filtered(self, transform: str, lines: int) -> None:
        """Count lines that a rule left out."""
        with self._lock:
            self._add(FILTERED, (transform,), lines)

    def lost(self, cause: str, size: int) -> None:
        """Count bytes that were gone before they could be read."""
        with self._lock:
            self._add(LOST_BYTES, (cause,), size)

    def dead_lettered(self, sink: str, lines: int) -> None:
        """Count lines that a sink refused for good."""
        with self._lock:
            self._add(DEAD_LETTERS, (sink,), lines)

    def set_spool(self, sink: str, size: int, limit: int) -> None:
        """Say how many bytes wait on disk for a sink, and how many may."""
        with self._lock:
            self._set(SPOOL, (sink,), size)
            self._set(SPOOL_LIMIT, (sink,), limit)

    def set_buffer(self, sink: str, size: int, oldest_seconds: float) -> None:
        """Say how many bytes wait in memory for a sink and how old its oldest batch is (0 when nothing waits)."""
        with self._lock:
            self._set(BUFFER, (sink,), size)
            self._set(OLDEST, (sink,), oldest_seconds)

    def forget_sink(self, sink: str) -> None:
        """Drop the gauges of a sink that a reload removed, so that no alert fires on its last values."""
        with self._lock:
            for metric in (SPOOL, SPOOL_LIMIT, BUFFER, OLDEST):
                self._values[metric.name].pop((sink,), None)

    def set_lag(self, file: str, size: int, seconds: float) -> None:
        """Say how many bytes of a file are unread and for how many seconds it has been behind."""
        with self._lock:
            self._lag[file] = (size, seconds)

    def forget_lag(self, file: str) -> None:
        """Drop a file that is gone or finished."""
        with self._lock:
            self._lag.pop(file, None)

    def set_files(self, *, open: int, unreadable: int) -> None:  # noqa: A002 - the word of the metric
        """Say how many files are held open and how many cannot be read."""
        with self._lock:
            self._set(OPEN, (), open)
            self._set(UNREADABLE, (), unreadable)

    def set_config(self, *, valid: bool, digest: str = "") -> None:
        """Say whether the file on disk is what runs; ``digest`` (hex) changes when what runs does, else ``""``."""
        with self._lock:
            self._set(CONFIG_VALID, (), int(valid))
            if digest:
                self._set(CONFIG_HASH, (), int(digest[:12], 16))

    def reloaded(self, result: str) -> None:
        """Count one reload: ``ok`` or ``refused``."""
        with self._lock:
            self._add(RELOADS, (result,), 1)

    def value(self, name: str, **labels: str) -> float:
        """Give one value, 0.0 when nothing was counted yet. Raises KeyError for an unknown name or label."""
        metric = next((metric for metric in METRICS if metric.name == name), None)
        if metric is None:
            raise KeyError(name)
        if set(labels) != set(metric.labels):
            raise KeyError(f"{name} has the labels {metric.labels}, not {tuple(labels)}")
        return float(self.series()[name].get(tuple(labels[label] for label in metric.labels), 0.0))

    def snapshot(self) -> dict[str, float]:
        """Give every value under ``name{label="value"}``, as Prometheus writes it."""
        result: dict[str, float] = {}
        series = self.series()
        for metric in METRICS:
            for values, number in series[metric.name].items():
                text = ",".join(f'{label}="{value}"' for label, value in zip(metric.labels, values, strict=True))
                result[f"{metric.name}{{{text}}}" if text else metric.name] = number
        return result

    def series(self) -> dict[str, dict[Labels, float]]:
        """Give a copy of everything: label values to number, by metric name. For the HTTP server."""
        with self._lock:
            result = {name: dict(values) for name, values in self._values.items()}
            lag = dict(self._lag)
        sizes: dict[Labels, float] = {}
        for file, (size, _) in lag.items():
            # The files known longest keep their own series, so that series do not flap from scrape to scrape.
            key = (file,) if len(sizes) < MAX_SERIES else (OTHER,)
            sizes[key] = sizes.get(key, 0) + size
        result[LAG_BYTES.name] = sizes
        result[LAG_SECONDS.name] = {(): max((seconds for _, seconds in lag.values()), default=0.0)}
        return result

    def _add(self, metric: Metric, labels: Labels, amount: float) -> None:
        values = self._values[metric.name]
        key = _bounded(values, labels)
        values[key] = values.get(key, 0) + amount

    def _set(self, metric: Metric, labels: Labels, number: float) -> None:
        values = self._values[metric.name]
        values[_bounded(values, labels)] = number


def _bounded(values: dict[Labels, float], labels: Labels) -> Labels:
    return labels if labels in values or len(values) < MAX_SERIES else tuple(OTHER for _ in labels)
