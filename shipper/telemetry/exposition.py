"""What the daemon's own HTTP server shows: numbers, health and status, and to whom."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from shipper.telemetry.metrics import METRICS
from shipper.visible import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client.core import Metric as Family

    from shipper.secret import Masker
    from shipper.telemetry.health import Health
    from shipper.telemetry.metrics import Metrics
    from shipper.telemetry.status import Status

#: Seconds that a client may take for its whole request, and again for taking the answer. A request is a few hundred
#: bytes over a local connection.
CLIENT_TIMEOUT = 5.0
#: The answer that a scraper gets which asks for nothing, or for what it cannot spell.
PLAIN = ""


class Exposition:
    """What a request is answered from. ``hosts`` are the names that count as ours while we listen on loopback.

    ``mask`` hides secrets in what is said of components: the errors of clients are the words of others.
    """

    def __init__(
        self,
        metrics: Metrics,
        health: Health,
        status: Callable[[], Status] | None,
        *,
        loopback: bool,
        hosts: frozenset[str],
        mask: Masker,
    ) -> None:
        self.health = health
        self.status = status
        self.loopback = loopback
        self.hosts = hosts
        self.mask = mask
        self._metrics = metrics
        self._registry: Any = None
        self._registry_lock = threading.Lock()

    def numbers(self, accept: str) -> tuple[bytes, str]:
        """Write our numbers in the form that an Accept header asks for; give them and their content type."""
        from prometheus_client.exposition import choose_encoder  # noqa: PLC0415 - 60 ms and 14 MiB

        # One at a time: many scrapes at once would only share the processor, and keep a probe waiting.
        with self._registry_lock:
            registry = self._registered()
            try:
                encode, content_type = choose_encoder(accept)
                return encode(registry), content_type
            except Exception:  # noqa: BLE001 - a header is anybody's text, and the library's parser of it raises at will
                encode, content_type = choose_encoder(PLAIN)
                return encode(registry), content_type

    def _registered(self) -> Any:
        """Give prometheus-client's registry of our numbers, made at the first call."""
        if self._registry is None:
            from prometheus_client.registry import CollectorRegistry  # noqa: PLC0415

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
                family.add_metric(tuple(map(label, labels)), number)
            yield family


def label(text: str) -> str:
    r"""Show a value of a label, which may be the name of any file: ``\x1b`` for what would steer a terminal.

    Two values stay two: a backslash is doubled, so that no file is called like another one is shown.
    """
    # The form of the answer has an escape of its own for the end of a line.
    return "\n".join(map(one_line, text.replace("\\", "\\\\").split("\n")))
