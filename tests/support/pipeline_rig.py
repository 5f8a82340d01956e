"""A pipeline over a source and sinks in memory, with the real state, buffers, deliveries and ledger."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from shipper.clock import SystemClock
from shipper.config.types import Config
from shipper.daemon.parts import Parts
from shipper.daemon.pipeline import Pipeline
from shipper.errors import PermanentError, RetryableError
from shipper.record import Batch, Resource, Span
from shipper.routing.router import RouteConfig, Router
from shipper.sink import BufferConfig, Limits, Sink, SinkConfig
from shipper.source import FileState, Source, SourceContext
from shipper.telemetry.health import Health
from shipper.telemetry.metrics import Metrics
from shipper.transform import Transform


class MemoryFile(Source):
    """A growing list of lines as one file; offset is the line's index times 100."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.at_risk = False
        self.docker = True
        self.chunk = 10
        self.read = 0

    def open(self, context: SourceContext) -> None:
        """See `Source.open`."""
        self.context = context
        known = context.positions.files(context.name)
        self.state = known[0] if known else context.positions.add(
            FileState(key=0, source=context.name, path="/x", device=1, inode=1, uid="u", head=0, head_size=0)
        )  # fmt: skip
        self.read = self.state.offset // 100
        self.resource = Resource(context.name, {"service.name": "api"})

    def poll(self, accept: Callable[[bool], bool]) -> Iterator[Batch]:
        """See `Source.poll`: batches of ``chunk`` lines."""
        while self.read < len(self.lines) and accept(self.at_risk):
            first = self.read
            self.read = min(len(self.lines), first + self.chunk)
            rows = range(first, self.read)
            stamp = 1_700_000_000_000_000_000 if self.docker else 0
            yield Batch(
                times=[stamp + i if stamp else 0 for i in rows],
                stamps=[stamp + i if stamp else 0 for i in rows],
                hashes=list(rows),
                raws=[self.lines[i] for i in rows],
                resources=[self.resource] * len(rows),
                offsets=[i * 100 for i in rows],
                span=Span(self.state.key, first * 100, self.read * 100, 5),
                size=100 * len(rows),
                at_risk=self.at_risk,
            )

    def idle(self) -> float:
        """See `Source.idle`."""
        return 0.01

    def exhausted(self) -> bool:
        """See `Source.exhausted`."""
        return self.read == len(self.lines)

    def close(self) -> None:
        """See `Source.close`."""


class Drop(Transform):
    """Removes records with one message."""

    def __init__(self, config: Any) -> None:
        self.message = config

    def apply(self, batch: Batch) -> Batch:
        """See `Transform.apply`."""
        assert batch.messages is not None
        return batch.select([i for i, message in enumerate(batch.messages) if message != self.message])


class MemorySink(Sink):
    """A destination that outlives the daemon; ``down`` makes it refuse."""

    limits = Limits(records=25)

    def __init__(self, name: str = "a") -> None:
        self.name = name
        self.down = False
        self.poison = ""
        self.records: dict[str, str] = {}
        self.ids: list[str] = []
        self.times: dict[str, int] = {}
        self.arrived = threading.Condition()

    def open(self) -> None:
        """See `Sink.open`."""
        if self.down:
            raise RetryableError("down")

    def write(self, batch: Batch) -> None:
        """See `Sink.write`."""
        if self.down:
            raise RetryableError("down", retry_after=0)
        if self.poison and self.poison in batch.raws:
            raise PermanentError("poison")
        with self.arrived:
            for record in batch.records():
                self.ids.append(record.id)
                self.records.setdefault(record.id, record.message)
                self.times[record.message] = record.time_ns
            self.arrived.notify_all()

    def wait(self, count: int, seconds: float = 20) -> bool:
        """Wait for so many distinct records; tell whether they came."""
        with self.arrived:
            return self.arrived.wait_for(lambda: len(self.records) >= count, seconds)

    @property
    def messages(self) -> list[str]:
        """What came, each record once, in order."""
        return list(self.records.values())

    def close(self) -> None:
        """See `Sink.close`."""


class PipelineRig:
    """A pipeline with one `MemoryFile` named ``x``."""

    def __init__(
        self,
        state_dir: Path,
        *sinks: MemorySink,
        routes: tuple[RouteConfig, ...] = (),
        buffer: BufferConfig | None = None,
        active: tuple[str, ...] = (),
        drop: str = "",
        transforms: dict[str, Transform] | None = None,
    ) -> None:
        self.source = MemoryFile()
        self.sinks = {sink.name: sink for sink in sinks}
        config = Config(
            sources={},
            sinks={
                sink.name: SinkConfig(type="memory", buffer=buffer or BufferConfig(max_memory=6000)) for sink in sinks
            },
            active=active or tuple(self.sinks),
            routes=routes,
            state_dir=state_dir,
        )
        router = Router(config.active, routes)
        self.metrics, self.health = Metrics(), Health()
        self.parts = Parts(
            config=config,
            router=router,
            sources={"x": self.source},
            transforms=transforms or ({"f": Drop(drop)} if drop else {}),
            sinks={name: sink for name, sink in self.sinks.items() if name in router.sinks},
            draining={name: sink for name, sink in self.sinks.items() if name not in router.sinks},
        )
        self.pipeline: Pipeline | None = None

    def start(self, *, once: bool = False) -> Pipeline:
        """Start a pipeline of these parts."""
        self.pipeline = Pipeline(self.parts, clock=SystemClock(), metrics=self.metrics, health=self.health, once=once)
        self.pipeline.start()
        return self.pipeline

    def stop(self, seconds: float = 10) -> None:
        """Stop it."""
        assert self.pipeline is not None
        self.pipeline.stop(seconds)

    def until(self, condition: Callable[[], bool], seconds: float = 20) -> bool:
        """Wait until the condition holds; tell whether it does."""
        deadline = time.monotonic() + seconds
        while not condition() and time.monotonic() < deadline:
            threading.Event().wait(0.005)
        return condition()


def lines(count: int, start: int = 0) -> list[str]:
    """Give texts to put into a `MemoryFile`."""
    return [f"line {i}" for i in range(start, start + count)]
