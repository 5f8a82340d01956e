"""Put records into AWS CloudWatch Logs, at least once, each with its id.

* Protocol: PutLogEvents; botocore, the core of boto3, names the place, signs and sends, without its retries. Its generic
  encoder is passed by: it costs more than everything else together.
* Event: one JSON object; `sinks.cloudwatch.encode` says of what form. Nothing is parsed for it unless ``line: json``.
* Guarantee: 200 with a JSON body, and its ``rejectedLogEventsInfo`` read. CloudWatch knows no ids, so that a request
  whose answer never came may be stored twice; the reader gives each record once.
* Limits (API reference of PutLogEvents): 1,048,576 bytes a request counted as UTF-8 plus 26 an event, 1 MiB an event,
  10,000 events, 24 hours, ascending times; 14 days back, 2 hours ahead. A larger record is sent in parts.
* Errors: `sinks.cloudwatch.faults`, by code.
"""

from __future__ import annotations

from sinks.cloudwatch.config import CloudwatchConfig
from sinks.cloudwatch.reader import CloudwatchReader
from sinks.cloudwatch.sink import CloudwatchSink

SINK = CloudwatchSink
READER = CloudwatchReader

__all__ = ["READER", "SINK", "CloudwatchConfig", "CloudwatchReader", "CloudwatchSink"]
