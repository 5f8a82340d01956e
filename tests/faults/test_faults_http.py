"""The sinks that speak HTTP through faults."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shipper.testing.fault_contract import HttpFaultContract
from support.azure_app_insights_server import AppInsightsServer
from support.azure_logs_server import AzureLogsServer
from support.cloudwatch_server import CloudwatchServer, Moto
from support.elasticsearch_server import ElasticsearchServer
from support.loki_server import LokiServer


class TestLoki(HttpFaultContract):
    counts_doubles = True  # Loki folds equal entries, as long as they come soon

    @pytest.fixture(autouse=True)
    def _place(self) -> Iterator[None]:
        with LokiServer() as self.server:
            yield


class TestElasticsearch(HttpFaultContract):
    @pytest.fixture(autouse=True)
    def _place(self) -> Iterator[None]:
        with ElasticsearchServer() as self.server:
            yield


@pytest.fixture(scope="module")
def moto() -> Iterator[Moto]:
    with Moto() as moto:
        yield moto


class TestCloudwatch(HttpFaultContract):
    doubles_allowed = True
    test_retry_after_as_a_date_is_honoured = None  # the service has no such form

    @pytest.fixture(autouse=True)
    def _place(self, moto: Moto) -> Iterator[None]:
        with CloudwatchServer(moto=moto) as self.server:
            yield


class TestAzureLogs(HttpFaultContract):
    doubles_allowed = True
    locked = (403,)  # 401 is first answered with a new token

    @pytest.fixture(autouse=True)
    def _place(self) -> Iterator[None]:
        with AzureLogsServer() as self.server:
            yield


class TestAzureAppInsights(HttpFaultContract):
    doubles_allowed = True

    @pytest.fixture(autouse=True)
    def _place(self) -> Iterator[None]:
        with AppInsightsServer() as self.server:
            yield
