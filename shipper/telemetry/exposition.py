"""What the daemon's own HTTP server shows: numbers, health and status, and to whom."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from shipper.telemetry.metrics import METRICS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client.core import Metric as Family

    from shipper.telemetry.health import Health
    from shipper.telemetry.metrics import Metrics
    from shipper.telemetry.status import Status

#: Seconds that a client may take for its request; it sends a few hundred bytes over a local connection.
CLIENT_TIMEOUT = 5.0


class Exposition:
    """What a request is answered from. ``hosts`` are the names that count as ours while we listen on loopback."""

    def __init__(
        self,
        metrics: Metrics,
        health: Health,
        status: Callable[[], Status] | None,
        *,
        loopback: bool,
        hosts: frozenset[str],
    ) -> None:
        self.health = health
        self.status = status
        self.loopback = loopback
        self.hosts = hosts
        self._metrics = metrics
        self._registry: Any = None
        self._registry_lock = threading.Lock()

    def registry(self) -> Any:
        """Give prometheus-client's registry of our numbers, made at the first call."""
        with self._registry_lock:
            if self._registry is None:
                from prometheus_client.registry import CollectorRegistry  # noqa: PLC0415 - 60 ms and 14 MiB

                self._registry = CollectorRegistry(auto_describe=False)
                self._registry.register(_Collector(self._metrics))
            return self._registry


class _Collector:
    """Turns our numbers into prometheus-client's families, at each scrape."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Family]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily  # noqa: PLC0415

        series = self._metrics.series()
        for metric in METRICS:
            kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            family = kind(metric.name, metric.help, labels=metric.labels)
            for labels, number in series[metric.name].items():
                family.add_metric(labels, number)
            yield family
