"""Push records to Grafana Loki 3, the raw line under a few labels, the id and the rest as structured metadata.

* Protocol: ``POST /loki/api/v1/push``, gzip JSON, or raw snappy protobuf. Only 204 is success.
* Streams: ``labels`` says what is a label. A record that is too far behind the newest of its stream goes to a stream of
  its own, by the day or hour it is from, under the label ``backfill``.
* Guarantee: a record sent again stands in the same stream at the same nanosecond with the same bytes, which Loki
  keeps once within its own rules; the reader hides what it keeps twice.
* Limits: those of pkg/validation/limits.go; a line above ``max_line_size`` is sent in parts and read back as one.
"""

from __future__ import annotations

from sinks.loki.config import LokiConfig
from sinks.loki.reader import LokiReader
from sinks.loki.sink import LokiSink

SINK = LokiSink
READER = LokiReader

__all__ = ["READER", "SINK", "LokiConfig", "LokiReader", "LokiSink"]
