"""Send records to a table of a Log Analytics workspace by Azure's Logs Ingestion API.

* Protocol: ``POST {endpoint}/dataCollectionRules/{rule}/streams/{stream}?api-version=2023-01-01``, a JSON array, gzip,
  an Entra token. 204 means taken; what a transformation drops later is told to nobody.
* Guarantee: at least once. Neither API nor table can tell doubles; every row carries the record's id, and our reader
  gives each record once.
* Limits: 1 MB a request, before and after compression; 64 KB a field, silently cut by the server. A record with a
  longer field is spread over several rows, and joined on reading (`sinks.azure_logs.encode`).
* Errors: `sinks.azure_logs.sink`.
"""

from __future__ import annotations

from sinks.azure_logs.config import AzureLogsConfig
from sinks.azure_logs.reader import AzureLogsReader
from sinks.azure_logs.sink import AzureLogsSink

SINK = AzureLogsSink
READER = AzureLogsReader

__all__ = ["READER", "SINK", "AzureLogsConfig", "AzureLogsReader", "AzureLogsSink"]
