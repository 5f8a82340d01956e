"""The azure_logs sink and its reader, against the stand-in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shipper.query import Query
from shipper.record import Record
from shipper.sink import Sink
from shipper.testing.azure_logs_server import AzureLogsServer
from shipper.testing.batches import START_NS
from shipper.testing.sink_contract import SinkContract
from sinks.azure_logs import AzureLogsConfig, AzureLogsReader, AzureLogsSink


def now() -> float:
    """An hour after the time of the batches."""
    return START_NS / 1e9 + 3_600


@pytest.fixture
def server() -> Iterator[AzureLogsServer]:
    with AzureLogsServer(now=now) as server:
        yield server


def _config(server: AzureLogsServer, **options: Any) -> AzureLogsConfig:
    return AzureLogsConfig(**server.sink(**options))


def _read(server: AzureLogsServer, **query: Any) -> list[Record]:
    reader = AzureLogsReader(_config(server))
    try:
        return list(reader.read(Query(**query)))
    finally:
        reader.close()


class TestAzureLogs(SinkContract):
    example = Path("config/examples/azure_logs.yaml")

    @pytest.fixture(autouse=True)
    def _place(self, server: AzureLogsServer) -> None:
        self.server = server

    def make_sink(self, tmp_path: Path) -> Sink:
        return AzureLogsSink(_config(self.server), now=now)

    def read_back(self, sink: Sink) -> list[Record]:
        return _read(self.server, oldest_first=True)

    def order_key(self, record: Record) -> Any:
        return record.time_ns, record.id
