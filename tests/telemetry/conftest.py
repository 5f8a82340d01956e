"""A daemon's HTTP server with its numbers and its health."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shipper.config.types import HttpConfig
from shipper.telemetry.health import Health
from shipper.telemetry.http import HttpServer
from shipper.telemetry.metrics import Metrics


@pytest.fixture
def health() -> Health:
    return Health()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def server(metrics: Metrics, health: Health) -> Iterator[HttpServer]:
    server = HttpServer(HttpConfig(listen="127.0.0.1:0"), metrics, health)
    server.start()
    yield server
    server.stop()
