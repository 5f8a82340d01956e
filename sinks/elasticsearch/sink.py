"""Writes batches with ``_bulk``."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, ClassVar

import msgspec

from shipper.errors import ParkedError, RetryableError
from shipper.sink import Limits, Sink, SinkConfig
from shipper.units import parse_size
from sinks import _http
from sinks._outcome import Outcome
from sinks.elasticsearch import faults, template
from sinks.elasticsearch.config import ElasticsearchConfig
from sinks.elasticsearch.encode import Documents, index_names, misfits, pieces
from sinks.elasticsearch.examine import examine
from sinks.elasticsearch.session import Session

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from shipper.record import Batch
    from shipper.sink import Finding
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


class _Bulk(msgspec.Struct, frozen=True):
    items: list[dict[str, _Item]]


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
        self._documents = Documents(ids=self._ids, original=config.original)
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
        refused = misfits(batch)
        for row, error in refused.items():
            outcome.refuse(row, error)
        rows = [row for row in range(len(batch)) if row not in refused]
        lines = self._documents.lines(batch.select(rows) if refused else batch)
        for name, places in self._indices(batch, rows).items():
            self._write_to(name, [lines[place] for place in places], [rows[place] for place in places], outcome)
        outcome.close()

    def _indices(self, batch: Batch, rows: list[int]) -> Mapping[str, Sequence[int]]:
        """Give the places within ``rows`` of the documents of each index. Its name stands in the URL alone: in the
        documents' lines some servers forbid it.
        """
        if not self._config.dated:
            return {self._config.index: range(len(rows))}
        names = index_names(self._config.index, [batch.times[row] for row in rows])
        found: dict[str, list[int]] = {}
        for place, name in enumerate(names):
            found.setdefault(name, []).append(place)
        return found

    def _write_to(self, index: str, lines: list[str], rows: list[int], outcome: Outcome) -> None:
        waiting = pieces(lines, self._most)[::-1]
        while waiting:
            piece = waiting.pop()
            mine = rows[piece.start : piece.stop]
            if outcome.stopped is not None:
                outcome.skip(mine)
                continue
            body = "".join(lines[piece.start : piece.stop]).encode()
            try:
                answer = self._send(index, body)
            except RetryableError as error:
                outcome.fail(mine, error)
                continue
            if answer.status == 413 and len(piece) > 1:
                self._most = max(_SMALLEST, min(self._most, len(body)) // 2)
                middle = (piece.start + piece.stop) // 2
                waiting += [range(middle, piece.stop), range(piece.start, middle)]
                continue
            self._judge(answer, mine, outcome)

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

    def examine(self) -> Iterator[Finding]:
        """Look at the cluster; see `sinks.elasticsearch.examine`."""
        return examine(self._config)

    def close(self) -> None:
        """Close all connections."""
        self._session.close()

    def _send(self, index: str, body: bytes) -> Answer:
        data = _http.gzipped(body) if self._config.compression == "gzip" else body
        try:
            return self._session.request("POST", f"/{index}/_bulk", self._query, body=data, headers=self._headers)
        except RetryableError as error:
            # A document that was stored is found by its id when it comes again.
            error.maybe_taken = error.maybe_taken and not self._ids
            raise

    def _judge(self, answer: Answer, rows: list[int], outcome: Outcome) -> None:
        what = self._session.what
        if answer.status != 200:
            error = faults.of_answer(answer, what)
            if isinstance(error, RetryableError):
                error.maybe_taken = answer.status >= 500 and not self._ids
            outcome.fail(rows, error)
            return
        try:
            items = [next(iter(item.values())) for item in _decoder.decode(answer.body).items]
        except (msgspec.DecodeError, UnicodeError, StopIteration):
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
