"""What every sink must hold, as tests to inherit::

    class TestNats(SinkContract):
        example = Path("config/examples/nats.yaml")

        def make_sink(self, tmp_path):
            return NatsSink(NatsConfig(type="nats", ...))

        def read_back(self, sink):
            return [...]          # Record rows, oldest first, or None

pytest collects the inherited tests. A sink whose backend cannot be read returns ``None`` from ``read_back``: what is
compared then falls away, that nothing fails stays.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest
import yaml

from shipper import registry
from shipper.errors import ConfigError, PartialError, PermanentError
from shipper.record import Batch, Record
from shipper.sink import Sink, SinkConfig
from shipper.testing.batches import START_NS, make_batch, make_resource, random_batch

#: Every field of a record that `SinkContract.compares` may name.
FIELDS = frozenset({"id", "time_ns", "level", "message", "attributes", "resource"})


class SinkContract(ABC):
    """Inherit, implement `make_sink` and `read_back`, and override what your backend does differently.

    ``exactly_once``: a batch that is written again is stored once, also by a new instance.
    ``compares``: the fields that come back as they were written; a text format keeps less.
    ``lone_surrogates``: ``replaced`` by U+FFFD, or ``refused`` (PermanentError, PartialError or UnicodeError).
    ``largest``: bytes of the largest message that must be taken. ``example``: a YAML file such as
    ``config/examples/nats.yaml``, looked for in the working directory and above it.
    """

    exactly_once: ClassVar[bool] = False
    compares: ClassVar[frozenset[str]] = FIELDS
    lone_surrogates: ClassVar[str] = "replaced"
    largest: ClassVar[int] = 1 << 20
    example: ClassVar[Path | None] = None

    # Hooks

    @abstractmethod
    def make_sink(self, tmp_path: Path) -> Sink:
        """Make a sink that is not open. The same ``tmp_path`` must lead to the same destination."""

    @abstractmethod
    def read_back(self, sink: Sink) -> list[Record] | None:
        """Give all records at the destination, oldest written first, or ``None`` if nothing can be read.

        Called while the sink is open and after it was closed. Fields that cannot be read may hold anything, if
        ``compares`` does not name them.
        """

    def order_key(self, record: Record) -> Any:
        """What the order of two lists is compared by; default: as written. Return ``record.id`` to sort both by it."""
        del record
        return 0

    # Lifecycle

    def test_open_write_close(self, tmp_path: Path) -> None:
        """A sink opens, takes a batch and closes."""
        self._round_trip(tmp_path, make_batch(["one", "two"]))

    def test_opening_again_harms_nothing(self, tmp_path: Path) -> None:
        """``open`` is called after any failure, also when nothing is wrong."""
        sink = self._open(tmp_path)
        first, second = make_batch(["one"]), make_batch(["two"], start_ns=START_NS + 10**9)
        sink.write(first)
        sink.open()
        sink.write(second)
        self._check(sink, first, second)
        sink.close()

    def test_new_instance_goes_on_where_the_old_one_ended(self, tmp_path: Path) -> None:
        """A restart keeps what is there and adds to it."""
        first, second = make_batch(["one"]), make_batch(["two"], start_ns=START_NS + 10**9)
        sink = self._open(tmp_path)
        sink.write(first)
        position = sink.position()
        sink.close()
        sink = self.make_sink(tmp_path)
        sink.resume(position)
        sink.open()
        sink.write(second)
        self._check(sink, first, second)
        sink.close()

    def test_closing_twice_is_harmless(self, tmp_path: Path) -> None:
        """``close`` must not raise, whatever came before."""
        sink = self._open(tmp_path)
        sink.close()
        sink.close()

    def test_closing_a_sink_that_was_never_open_is_harmless(self, tmp_path: Path) -> None:
        """A pipeline whose start failed closes all its sinks."""
        self.make_sink(tmp_path).close()

    def test_healthcheck_writes_nothing(self, tmp_path: Path) -> None:
        """``healthcheck`` of a healthy sink passes and leaves no record."""
        sink = self._open(tmp_path)
        sink.healthcheck()
        self._check(sink)
        sink.close()

    # Batches

    def test_empty_batch(self, tmp_path: Path) -> None:
        """A batch without records leaves nothing."""
        self._round_trip(tmp_path, make_batch([]))

    def test_limits(self, tmp_path: Path) -> None:
        """Batches one below, at and one above ``limits.records`` are all taken whole (the delivery may merge)."""
        sink = self._open(tmp_path)
        records = min(sink.limits.records, 5_000)
        batches = [
            make_batch([f"{count} {index}" for index in range(count)], start_ns=START_NS + round_ * 10**12)
            for round_, count in enumerate((records - 1, records, records + 1))
        ]
        for batch in batches:
            sink.write(batch)
        self._check(sink, *batches)
        sink.close()

    def test_order_is_kept(self, tmp_path: Path) -> None:
        """Records stand in the order in which they were written."""
        self._round_trip(tmp_path, make_batch([str(index) for index in range(500)], step_ns=1_000))

    def test_many_resources_in_one_batch(self, tmp_path: Path) -> None:
        """Batches are merged before a sink sees them: each record has its own resource."""
        resources = [make_resource(f"service-{index % 20}", source=f"source-{index % 3}") for index in range(200)]
        self._round_trip(tmp_path, make_batch([str(index) for index in range(200)], resource=resources))

    def test_resource_without_attributes(self, tmp_path: Path) -> None:
        """A plain file may say nothing but the source's name."""
        bare = type(make_resource())("files", {})
        self._round_trip(tmp_path, make_batch(["bare"], resource=bare))

    def test_batch_is_not_changed(self, tmp_path: Path) -> None:
        """Other sinks share the batch in other threads."""
        batch = make_batch(["one", "two"], attributes={"user_id": "7", "nested": {"a": 1}})
        before = msgspec.json.encode(list(batch.records()))
        sink = self._open(tmp_path)
        sink.write(batch)
        sink.close()
        assert msgspec.json.encode(list(batch.records())) == before

    def test_unparsed_batch(self, tmp_path: Path) -> None:
        """A sink that does not ask for a parse gets batches without messages and takes them."""
        sink = self._open(tmp_path)
        if not sink.wants_parse:
            sink.write(make_batch(["raw one", "raw two"], parsed=False))
        sink.close()

    def test_replay_is_not_doubled(self, tmp_path: Path) -> None:
        """With ``exactly_once``: a crash before the position was saved brings the same records again, stored once."""
        sink = self._open(tmp_path)
        before = make_batch(["before"], start_ns=START_NS - 10**9)
        sink.write(before)
        saved = sink.position()
        batch = make_batch([f"line {index % 3}" for index in range(10)])
        sink.write(batch)
        sink.close()
        sink = self.make_sink(tmp_path)
        sink.resume(saved)
        sink.open()
        sink.write(batch.select(range(4)))
        sink.write(batch.select(range(4, 10)))
        if self.exactly_once:
            self._check(sink, before, batch)
        sink.close()

    # Content

    def test_unicode(self, tmp_path: Path) -> None:
        """Every script, composed or not, and characters beyond the 16-bit plane."""
        messages = [
            "größe",
            "日本語",
            "עברית",
            "\U0001f600 \U0001f469\u200d\U0001f680",
            "e\u0301",
            "\u2028\u2029",
            "\ufeff",
        ]
        self._round_trip(tmp_path, make_batch(messages, attributes={"naïve ключ": "значение"}))

    def test_control_characters(self, tmp_path: Path) -> None:
        """NUL, escape sequences, carriage returns and DEL."""
        self._round_trip(tmp_path, make_batch(["a\x00b", "\x1b[31mred\x1b[0m", "over\rwritten", "\x7f\x80", "tab\t"]))

    def test_line_breaks(self, tmp_path: Path) -> None:
        """One record of many lines is one record."""
        self._round_trip(tmp_path, make_batch(["Traceback:\n  File x\n\nError", "\n", "end\n"]))

    def test_empty_message(self, tmp_path: Path) -> None:
        """Applications write empty lines."""
        self._round_trip(tmp_path, make_batch(["", "   ", ""]))

    def test_large_message(self, tmp_path: Path) -> None:
        """A message of ``largest`` bytes is taken whole, also when it is not ASCII."""
        self._round_trip(tmp_path, make_batch(["x" * self.largest, "é" * (self.largest // 2)]))

    def test_lone_surrogates(self, tmp_path: Path) -> None:
        """Half a surrogate pair, which JSON can smuggle in, spoils no other record."""
        batch = make_batch(["good", "bad \ud800 end"], attributes=[{}, {"k\udfff": "\udc00"}])
        sink = self._open(tmp_path)
        if self.lone_surrogates == "refused":
            with pytest.raises((PermanentError, PartialError, UnicodeError)):
                sink.write(batch)
        else:
            sink.write(batch)
            mended = make_batch(["good", "bad \ufffd end"], attributes=[{}, {"k\ufffd": "\ufffd"}])
            found = self.read_back(sink)
            if found is not None and "message" in self.compares:
                assert [record.message for record in found] == mended.messages
            if found is not None and "attributes" in self.compares:
                assert [record.attributes for record in found] == mended.attributes
        sink.close()

    def test_levels(self, tmp_path: Path) -> None:
        """All six levels come back."""
        levels = ["trace", "debug", "info", "warn", "error", "fatal"]
        self._round_trip(tmp_path, make_batch(levels, level=levels))

    def test_nanoseconds(self, tmp_path: Path) -> None:
        """Times that differ in the last digit stay apart and exact."""
        self._round_trip(tmp_path, make_batch(["a", "b", "c"], start_ns=START_NS + 999_999_998, step_ns=1))

    def test_attributes_of_every_type(self, tmp_path: Path) -> None:
        """Text, numbers, booleans, null, lists and objects keep their types."""
        attributes = {
            "text": "a 'b' \"c\" \\ %s {}", "int": 2**53, "negative": -1, "float": 0.1, "yes": True, "no": False,
            "nothing": None, "list": [1, "two", [3]], "object": {"a": {"b": "c"}}, "empty": "", "": "no name",
            "user_id": "42", "action": "login", "ip_address": "::1", "user_agent": "x" * 2_000,
        }  # fmt: skip
        self._round_trip(tmp_path, make_batch(["typed"], attributes=attributes))

    def test_random_batches_read_back_as_written(self, tmp_path: Path) -> None:
        """Anything goes: read back equals written."""
        rng = random.Random(20_260_102)  # noqa: S311 - to be repeated
        batches = [random_batch(rng, start_ns=START_NS + index * 10**12) for index in range(10)]
        self._round_trip(tmp_path, *batches)

    # Configuration

    def test_every_option_is_described(self, tmp_path: Path) -> None:
        """The reference page and the editor's hints are generated from the descriptions."""
        cls = type(self.make_sink(tmp_path)).config
        assert issubclass(cls, SinkConfig)
        assert (cls.__doc__ or "").strip()
        schema = msgspec.json.schema(cls)
        options = schema["$defs"][cls.__name__]["properties"]
        assert [name for name, option in options.items() if not option.get("description")] == []

    def test_unknown_option_is_refused(self, tmp_path: Path) -> None:
        """A typing mistake must not pass in silence."""
        cls = type(self.make_sink(tmp_path)).config
        assert cls.__struct_config__.forbid_unknown_fields

    def test_example_loads(self, tmp_path: Path) -> None:
        """The example has a section of this type that its config class takes."""
        sink = self.make_sink(tmp_path)
        if self.example is None:
            pytest.skip("no example named")
        sections = yaml.safe_load(_find(self.example).read_text())["sinks"].values()
        mine = [section for section in sections if _is_of(sink, section["type"])]
        assert mine, (
            f"{self.example} has no section whose type is {type(sink).__name__}; is its package installed, and does it"
            " name the module under the entry points shipper.sinks?"
        )
        for section in mine:
            msgspec.convert(section, type(sink).config)

    # What the tests stand on

    def _open(self, tmp_path: Path) -> Sink:
        sink = self.make_sink(tmp_path)
        sink.resume(None)
        sink.open()
        return sink

    def _round_trip(self, tmp_path: Path, *batches: Batch) -> None:
        sink = self._open(tmp_path)
        for batch in batches:
            sink.write(batch)
        self._check(sink, *batches)
        sink.close()
        self._check(sink, *batches)

    def _check(self, sink: Sink, *batches: Batch) -> None:
        found = self.read_back(sink)
        if found is None:
            return
        written = [record for batch in batches for record in batch.records()]
        got = [self._row(record) for record in sorted(found, key=self.order_key)]
        assert got == [self._row(record) for record in sorted(written, key=self.order_key)]

    def _row(self, record: Record) -> dict[str, Any]:
        row = {
            "id": record.id,
            "time_ns": record.time_ns,
            "level": record.level,
            "message": record.message,
            "attributes": record.attributes,
            "resource": (record.resource.source, record.resource.attributes),
        }
        return {name: value for name, value in row.items() if name in self.compares}


def _is_of(sink: Sink, name: str) -> bool:
    """Tell whether a section of this type would make such a sink."""
    try:
        return isinstance(sink, registry.sink(name))
    except ConfigError:
        return False


def _find(path: Path) -> Path:
    """Give the path, looked for in the working directory and above it."""
    for directory in (Path.cwd(), *Path.cwd().parents):
        if (directory / path).exists():
            return directory / path
    raise FileNotFoundError(path)
