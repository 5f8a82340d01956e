"""The CloudWatch sink and its reader, against moto behind a proxy that is as strict as the service."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from shipper.query import Query
from shipper.record import Record
from shipper.sink import Sink
from shipper.testing.batches import START_NS
from shipper.testing.cloudwatch_server import CloudwatchServer, Moto
from shipper.testing.sink_contract import FIELDS, SinkContract
from sinks.cloudwatch import CloudwatchConfig, CloudwatchReader, CloudwatchSink

#: A day after the records of the test kit, which are older than what the service takes today.
NOW = START_NS / 1e9 + 86_400


def now() -> float:
    return NOW


@pytest.fixture(scope="module")
def moto() -> Iterator[Moto]:
    with Moto() as moto:
        yield moto


@pytest.fixture
def server(moto: Moto) -> Iterator[CloudwatchServer]:
    with CloudwatchServer(moto=moto, now=now) as server:
        yield server


def _config(server: CloudwatchServer, **options: Any) -> CloudwatchConfig:
    return CloudwatchConfig(**server.sink(**options))


def _read(config: CloudwatchConfig, **query: Any) -> list[Record]:
    reader = CloudwatchReader(config, now=now)
    try:
        return list(reader.read(Query(**query)))
    finally:
        reader.close()


class _Contract(SinkContract):
    example = Path("config/examples/cloudwatch.yaml")
    options: ClassVar[dict[str, Any]] = {}

    @pytest.fixture(autouse=True)
    def _place(self, server: CloudwatchServer) -> None:
        self.server = server

    def make_sink(self, tmp_path: Path) -> Sink:
        return CloudwatchSink(_config(self.server, **self.options), now=now)

    def read_back(self, sink: Sink) -> list[Record]:
        return _read(_config(self.server, **self.options), oldest_first=True)

    def order_key(self, record: Record) -> Any:
        return record.time_ns, record.id


class TestCloudwatchRecords(_Contract):
    """Read back equals written, once, though CloudWatch keeps what comes twice."""

    exactly_once = True
    options: ClassVar[dict[str, Any]] = {"line": "json"}


class TestCloudwatchLines(_Contract):
    """The raw line comes back, and whoever reads parses it: attributes are in it."""

    exactly_once = True
    compares = FIELDS - {"attributes"}
