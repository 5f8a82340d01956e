"""The otlp sink through faults: at least once, and each doubt counted."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shipper.testing.fault_contract import HttpFaultContract
from support.otlp_server import OtlpServer


class TestOtlp(HttpFaultContract):
    doubles_allowed = True
    later = (429, 502, 503, 504)  # 500 is final in OTLP

    @pytest.fixture(autouse=True)
    def _place(self) -> Iterator[None]:
        with OtlpServer() as self.server:
            yield
