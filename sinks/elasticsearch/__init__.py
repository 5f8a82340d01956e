"""Index records in Elasticsearch or OpenSearch, also in both Serverless kinds.

* Protocol: NDJSON to ``/<index>/_bulk`` with ``create``, gzipped; the same requests for all families.
* Guarantee: returning means that each document was answered with 200, 201 or 409. Its ``_id`` is the record's id, so a
  repeat is a conflict and nothing more: once per index in a dated one, once per backing index in a data stream.
* Limits: 5,000 records a batch; a request has at most ``max_body`` bytes and less once the server answered 413.
* Errors: `sinks.elasticsearch.faults`, by type; of single documents by their place in the answer.
* Documents: `sinks.elasticsearch.encode`; the mapping: `sinks.elasticsearch.template`.
"""

from __future__ import annotations

from sinks.elasticsearch.config import ElasticsearchConfig, SigV4Config
from sinks.elasticsearch.reader import ElasticsearchReader
from sinks.elasticsearch.sink import ElasticsearchSink

SINK = ElasticsearchSink
READER = ElasticsearchReader

__all__ = ["READER", "SINK", "ElasticsearchConfig", "ElasticsearchReader", "ElasticsearchSink", "SigV4Config"]
