"""The other sinks that speak HTTP through faults. A sink that is not built yet is skipped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from shipper.testing.fault_contract import HttpFaultContract


def _stand_in(name: str) -> Any:
    return pytest.importorskip(f"shipper.testing.{name}_server")


class TestLoki(HttpFaultContract):
    counts_doubles = True  # Loki folds equal entries, as long as they come soon

    @pytest.fixture(autouse=True)
    def _place(self) -> Iterator[None]:
        with _stand_in("loki").LokiServer() as self.server:
            yield


class TestElasticsearch(HttpFaultContract):
    @pytest.fixture(autouse=True)
    def _place(self) -> Iterator[None]:
        with _stand_in("elasticsearch").ElasticsearchServer() as self.server:
            yield


@pytest.fixture(scope="module")
def moto() -> Iterator[Any]:
    with _stand_in("cloudwatch").Moto() as moto:
        yield moto


class TestCloudwatch(HttpFaultContract):
    doubles_allowed = True
    test_retry_after_as_a_date_is_honoured = None  # the service has no such form

    @pytest.fixture(autouse=True)
    def _place(self, moto: Any) -> Iterator[None]:
        with _stand_in("cloudwatch").CloudwatchServer(moto=moto) as self.server:
            yield


class TestAzureLogs(HttpFaultContract):
    doubles_allowed = True
    locked = (403,)  # 401 is first answered with a new token

    @pytest.fixture(autouse=True)
    def _place(self) -> Iterator[None]:
        with _stand_in("azure_logs").AzureLogsServer() as self.server:
            yield


class TestAzureAppInsights(HttpFaultContract):
    doubles_allowed = True

    @pytest.fixture(autouse=True)
    def _place(self) -> Iterator[None]:
        with _stand_in("azure_app_insights").AppInsightsServer() as self.server:
            yield
