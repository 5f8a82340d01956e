"""Building: from a configuration to the parts of a pipeline, before any of them is opened."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

import msgspec

from shipper import registry
from shipper.config.types import Config
from shipper.delivery.buffer import Buffer
from shipper.delivery.deadletter import DeadLetters
from shipper.delivery.delivery import Delivery
from shipper.delivery.spill import Spill
from shipper.delivery.survey import pending_spills, spill_directory
from shipper.errors import ConfigError
from shipper.fs import FileSystem
from shipper.routing.router import Router
from shipper.sink import Sink, SinkConfig
from shipper.source import Source
from shipper.state.checkpoint import Cursor
from shipper.telemetry.logs import get_logger
from shipper.transform import Transform
from shipper.units import parse_size

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shipper.clock import Clock
    from shipper.state.ledger import Ledger
    from shipper.telemetry.health import Health
    from shipper.telemetry.metrics import Metrics

log = get_logger("pipeline")


class Parts(msgspec.Struct, frozen=True):
    """Everything of a configuration, built but not opened: what a reload needs before it may stop the old pipeline.

    ``draining`` are sinks that no record goes to any more but for which spilled batches wait: they are still
    delivered. ``removed`` are the last sections of sinks that a reload took out of the configuration.
    """

    config: Config
    router: Router
    sources: dict[str, Source]
    transforms: dict[str, Transform]
    sinks: dict[str, Sink]
    draining: dict[str, Sink]
    removed: dict[str, SinkConfig] = {}

    @classmethod
    def build(cls, config: Config, removed: Mapping[str, SinkConfig] = MappingProxyType({})) -> Parts:
        """Build all parts; ``removed`` has the last sections of sinks that the config may lack. Raises ConfigError."""
        router = Router(config.active, config.routes)
        return cls(
            config=config,
            router=router,
            sources={name: registry.source(section.type)(section) for name, section in config.sources.items()},
            transforms={name: registry.transform(section.type)(section) for name, section in config.transforms.items()},
            sinks={name: _build_sink(config.sinks[name]) for name in router.sinks},
            draining={},
            removed={name: section for name, section in removed.items() if name not in config.sinks},
        ).with_draining()

    def with_draining(self) -> Parts:
        """Give the same parts with every sink that has spill left now, and gets no records, as draining.

        A pipeline that stops may spill: a reload asks again after that. A sink that cannot be built any more (its
        package is gone) keeps its spill and must not keep the others from running.
        """
        draining: dict[str, Sink] = {}
        for name in pending_spills(self.config.state_dir):
            if name in self.router.sinks or (name not in self.config.sinks and name not in self.removed):
                continue
            try:
                draining[name] = _build_sink(self.section(name))
            except ConfigError as error:
                log.warning("undelivered lines wait for a sink that cannot be built", sink=name, error=str(error))
        return msgspec.structs.replace(self, draining=draining)

    def section(self, name: str) -> SinkConfig:
        """Give the section of a sink, of a removed one its last."""
        return self.config.sinks.get(name) or self.removed[name]

    @property
    def running(self) -> dict[str, SinkConfig]:
        """The sections of all sinks that have a delivery."""
        return {name: self.section(name) for name in (*self.sinks, *self.draining)}

    @property
    def wants_parse(self) -> bool:
        """Whether any part needs more of a line than its raw text."""
        return (
            any(sink.wants_parse for sink in self.sinks.values())
            or any(transform.wants_parse for transform in self.transforms.values())
            or self.router.wants_parse
        )

    @property
    def wants_levels(self) -> bool:
        """Whether a sink needs levels even of lines that are not parsed."""
        return any(sink.wants_levels for sink in self.sinks.values())

    def deliveries(self, ledger: Ledger, *, clock: Clock, metrics: Metrics, health: Health) -> dict[str, Delivery]:
        """Build the delivery of every sink, with its buffer and its spill. Raises sqlite3.Error and OSError."""
        return {
            name: self._delivery(name, sink, ledger, clock=clock, metrics=metrics, health=health)
            for name, sink in {**self.sinks, **self.draining}.items()
        }

    def _delivery(
        self,
        name: str,
        sink: Sink,
        ledger: Ledger,
        *,
        clock: Clock,
        metrics: Metrics,
        health: Health,
    ) -> Delivery:
        limits = self.section(name).buffer
        state = ledger.sink_state(name)
        sink.resume(state.position)

        def given_up(reason: str, records: int) -> None:
            metrics.dropped(reason, records)
            ledger.give_up(name, reason, records)

        spill = Spill(
            spill_directory(self.config.state_dir, name),
            limit=parse_size(limits.max_size),
            fs=FileSystem(),
            cursor=Cursor(state.segment, state.offset, state.record),
            on_lost=given_up,
            on_fault=lambda records: metrics.fault("spill", records),
        )
        buffer = Buffer(
            spill,
            clock=clock,
            max_memory=parse_size(limits.max_memory),
            drop_oldest=limits.when_full == "drop_oldest",
            on_safe=lambda spans: ledger.done(name, spans),
            on_cursor=lambda cursor: ledger.spill_cursor(name, cursor.segment, cursor.offset, cursor.record),
            on_dropped=lambda records: given_up("spill_full", records),
        )
        return Delivery(
            name,
            sink,
            buffer,
            ledger=ledger,
            dead_letters=DeadLetters(
                self.config.state_dir / "dead-letter" / f"{name}.jsonl",
                clock=clock,
                limit=parse_size(limits.max_dead_letters),
                drop_oldest=limits.when_full == "drop_oldest",
                on_dropped=lambda records: given_up("dead_letters_full", records),
                on_fault=lambda records: metrics.fault("dead letter", records),
            ),
            clock=clock,
            metrics=metrics,
            health=health,
        )


def _build_sink(section: SinkConfig) -> Sink:
    return registry.sink(section.type)(section)
