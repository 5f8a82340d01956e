"""Send records to Azure Application Insights: messages, exceptions and custom events.

* Protocol: ``POST {endpoint}/v2.1/track``, a JSON array of envelopes, gzip. Answers tell failures by index.
* Guarantee: at least once. The backend cannot tell doubles; every item carries the record's id, and our reader gives
  each record once.
* Limits: 64 KB an item, 64,000 items a request, messages of 32,768 characters, property keys of 150 and values of
  8,192, records of the last 48 hours. What exceeds a length is spread over further properties and items, and joined on
  reading; what is too old is refused (`sinks.azure_app_insights.encode` and ``sink``).
* Errors: `sinks.azure_app_insights.sink`.
"""

from __future__ import annotations

from sinks.azure_app_insights.config import AppInsightsConfig
from sinks.azure_app_insights.reader import AppInsightsReader
from sinks.azure_app_insights.sink import AppInsightsSink

SINK = AppInsightsSink
READER = AppInsightsReader

__all__ = ["READER", "SINK", "AppInsightsConfig", "AppInsightsReader", "AppInsightsSink"]
