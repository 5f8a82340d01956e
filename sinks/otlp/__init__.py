"""Send records to whatever speaks OTLP over HTTP: an OpenTelemetry collector, Loki, a vendor.

* Protocol: ``POST <endpoint>/v1/logs``, OTLP 1 as protobuf (written by hand, no package needed) or JSON, gzip.
* Mapping: `sinks.otlp.protobuf` and `sinks.otlp.json` write the same; `sinks.otlp.values` says what cannot be held.
* Guarantee: at least once. An answer of 200 without rejected records, or Loki's 204, means taken. OTLP has no key, so a
  request whose answer was lost may be stored twice; ``log.record.uid`` tells.
* Limits: 20 MiB a request before compression, which is what collectors take by default.
* Errors: `sinks.otlp.answers`, by status. It cannot be read back: OTLP has no request for that.
"""

from __future__ import annotations

from sinks.otlp.config import OtlpConfig
from sinks.otlp.sink import OtlpSink

SINK = OtlpSink

__all__ = ["SINK", "OtlpConfig", "OtlpSink"]
