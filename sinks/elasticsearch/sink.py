"""Index records in Elasticsearch or OpenSearch with ``_bulk``, each once: what goes out and what the answers mean."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, ClassVar

import msgspec

from shipper.errors import ParkedError, RetryableError
from shipper.sink import Limits, Sink, SinkConfig
from shipper.units import parse_size
from sinks._outcome import Outcome
from sinks.elasticsearch import faults, template
from sinks.elasticsearch.config import ElasticsearchConfig
from sinks.elasticsearch.encode import Documents, by_index, out_of_range
from sinks.elasticsearch.examine import examine
from sinks.elasticsearch.session import Session

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from shipper.record import Batch
    from shipper.sink import Change, Finding
    from sinks._http import Answer

#: What is asked to be in the answer. Each item's status must be: its place tells which document it is of.
_WANTED = "errors,items.*.status,items.*.failure_store,items.*.error.type,items.*.error.reason"
#: Bytes below which the size of a request is not cut further, whatever the server refuses.
_SMALLEST = 1 << 16
#: The reason under which documents in a failure store are counted.
FAILURE_STORE = "failure_store"


class _Error(msgspec.Struct, frozen=True):
    type: str = ""
    reason: str = ""


class _Item(msgspec.Struct, frozen=True):
    status: int
    failure_store: str = ""
    error: _Error = _Error()


class _Action(msgspec.Struct, frozen=True):
    create: _Item


class _Bulk(msgspec.Struct, frozen=True):
    items: list[_Action]


_decoder = msgspec.json.Decoder(_Bulk, strict=False)


class ElasticsearchSink(Sink):
    """Delivers batches by ``create``: a document whose id is there already is a repeat, and taken."""

    config: ClassVar[type[SinkConfig]] = ElasticsearchConfig
    limits = Limits(records=5_000, bytes=2 << 20)

    def __init__(self, config: ElasticsearchConfig) -> None:
        """Open nothing. Raises ConfigError."""
        self._config = config
        self._session = Session(config)
        self._ids = config.ids == "record"
        self._documents = Documents(ids=self._ids, original=config.original, gzip=config.compression == "gzip")
        self._query = {"filter_path": _WANTED}
        if config.pipeline:
            self._query["pipeline"] = config.pipeline
        self._headers = {"Content-Type": "application/x-ndjson"}
        if config.compression == "gzip":
            self._headers["Content-Encoding"] = "gzip"
        #: Bytes of a request before compression; a 413 lowers it for good.
        self._most = parse_size(config.max_body)
        self._prepared = False
        self._diverted: Counter[str] = Counter()

    def open(self) -> None:
        """Prove that the server answers and takes the login; make the template once. Raises RetryableError."""
        if self._prepared:
            return
        self._session.product()
        if self._config.create_template:
            template.prepare(self._config, self._session)
        self._prepared = True

    def write(self, batch: Batch) -> None:
        """Index every record. Raises RetryableError, ParkedError, PermanentError or PartialError."""
        if not len(batch):
            return
        outcome = Outcome(len(batch))
        rows: Sequence[int] = range(len(batch))
        refused = out_of_range(batch.times)
        if refused:
            for row, error in refused.items():
                outcome.refuse(row, error)
            rows = [row for row in rows if row not in refused]
            batch = batch.select(rows)
        if rows:
            self._write_all(batch, rows, outcome)
        outcome.close()

    def _write_all(self, batch: Batch, rows: Sequence[int], outcome: Outcome) -> None:
        """Send each index its documents. Its name stands in the URL alone: in the lines some servers forbid it."""
        if not self._config.dated:
            self._write_to(self._config.index, batch, rows, outcome)
            return
        for name, own_rows in by_index(self._config.index, batch.times).items():
            if len(own_rows) == len(rows):
                self._write_to(name, batch, rows, outcome)
            else:
                self._write_to(name, batch.select(own_rows), [rows[place] for place in own_rows], outcome)

    def _write_to(self, index: str, batch: Batch, rows: Sequence[int], outcome: Outcome) -> None:
        waiting = [range(len(batch))]
        while waiting:
            piece = waiting.pop()
            if outcome.stopped is not None:
                outcome.skip(rows[piece.start : piece.stop])
                continue
            body = self._documents.body(batch, piece, self._most)
            sent = body.rows
            if sent.stop < piece.stop:
                waiting.append(range(sent.stop, piece.stop))
            own_rows = rows[sent.start : sent.stop]
            try:
                answer = self._send(index, body.data)
            except RetryableError as error:
                outcome.fail(own_rows, error)
                continue
            if answer.status == 413 and len(sent) > 1:
                self._most = max(_SMALLEST, min(self._most, body.size) // 2)
                middle = (sent.start + sent.stop) // 2
                waiting += [range(middle, sent.stop), range(sent.start, middle)]
                continue
            self._judge(answer, own_rows, outcome)

    def diverted(self) -> Mapping[str, int]:
        """Count what went to a failure store since the last call."""
        found, self._diverted = self._diverted, Counter()
        return found

    def healthcheck(self) -> None:
        """Prove that the server answers and takes the login, by a bulk request without a document. Raises SinkError."""
        self.open()
        answer = self._session.request("POST", "/_bulk", body=b"\n", headers={"Content-Type": "application/x-ndjson"})
        if answer.status not in {200, 400}:
            raise faults.of_answer(answer, self._session.what)

    def changes(self) -> list[Change]:
        """Give the request that makes the template. Raises SinkError."""
        return template.changes(self._config, self._session)

    def examine(self) -> Iterator[Finding]:
        """Look at the cluster; see `sinks.elasticsearch.examine`."""
        return examine(self._config)

    def close(self) -> None:
        """Close all connections."""
        self._session.close()

    def _send(self, index: str, body: bytes) -> Answer:
        try:
            return self._session.request("POST", f"/{index}/_bulk", self._query, body=body, headers=self._headers)
        except RetryableError as error:
            # A document that was stored is found by its id when it comes again.
            error.maybe_taken = error.maybe_taken and not self._ids
            raise

    def _judge(self, answer: Answer, rows: Sequence[int], outcome: Outcome) -> None:
        what = self._session.what
        if answer.status != 200:
            error = faults.of_answer(answer, what)
            if isinstance(error, RetryableError):
                error.maybe_taken = answer.status >= 500 and not self._ids
            outcome.fail(rows, error)
            return
        if _all_stored(answer.body, len(rows)):
            return
        try:
            items = [item.create for item in _decoder.decode(answer.body).items]
        except (msgspec.DecodeError, UnicodeError):
            items = []
        if len(items) != len(rows):
            outcome.fail(
                rows,
                ParkedError(
                    f"{what}: this is no answer to a bulk request of {len(rows)} documents: {answer.text[:200]}; check"
                    " the endpoint",
                    code="answer",
                ),
            )
            return
        for row, item in zip(rows, items, strict=True):
            if item.status == 201 and not item.failure_store:
                continue
            if item.failure_store == "used":
                self._diverted[FAILURE_STORE] += 1
            failure = faults.of_item(item.status, item.error.type, item.error.reason, what)
            if failure is None:
                continue
            outcome.refuse(row, failure)
            if isinstance(failure, RetryableError):
                outcome.stopped = failure


def _all_stored(body: bytes, count: int) -> bool:
    """Tell at a glance whether every document was stored anew and none put aside; if not, each item is looked at."""
    return body == b'{"errors":false,"items":[%b]}' % b",".join([b'{"create":{"status":201}}'] * count)
