"""The azure_app_insights sink and its reader, against the stand-in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shipper.query import Query
from shipper.record import Record
from shipper.sink import Sink
from shipper.testing.azure_app_insights_server import AppInsightsServer
from shipper.testing.batches import START_NS
from shipper.testing.sink_contract import SinkContract
from sinks.azure_app_insights import AppInsightsConfig, AppInsightsReader, AppInsightsSink


def now() -> float:
    """An hour after the time of the batches."""
    return START_NS / 1e9 + 3_600


@pytest.fixture
def server() -> Iterator[AppInsightsServer]:
    with AppInsightsServer(now=now) as server:
        yield server


def _config(server: AppInsightsServer, **options: Any) -> AppInsightsConfig:
    return AppInsightsConfig(**server.sink(**options))


def _read(server: AppInsightsServer, **query: Any) -> list[Record]:
    reader = AppInsightsReader(_config(server))
    try:
        return list(reader.read(Query(**query)))
    finally:
        reader.close()


class TestAppInsights(SinkContract):
    example = Path("config/examples/azure_app_insights.yaml")

    @pytest.fixture(autouse=True)
    def _place(self, server: AppInsightsServer) -> None:
        self.server = server

    def make_sink(self, tmp_path: Path) -> Sink:
        return AppInsightsSink(_config(self.server), now=now)

    def read_back(self, sink: Sink) -> list[Record]:
        return _read(self.server, oldest_first=True)

    def order_key(self, record: Record) -> Any:
        return record.time_ns, record.id
