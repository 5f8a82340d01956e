"""What must become of records when the network or the backend fails, as tests to inherit::

    class TestNatsFaults(FaultContract):
        doubles_allowed = True                       # at least once: an answer that was lost means perhaps twice

        @pytest.fixture(autouse=True)
        def _place(self):
            with NatsServer() as self.server:
                yield

        def upstream(self): return "127.0.0.1", self.server.port
        def sections(self, port): return {"type": "nats", "server": f"127.0.0.1:{port}"}
        def ids(self): return self.server.ids()

For a stand-in that inherits `HttpServer`, inherit `HttpFaultContract`: it knows these three, and adds what is told by
statuses. Between sink and server stands a `FaultProxy`; in front of the sink a real buffer, delivery and ledger (`Rig`)
whose clock jumps over every wait.

Every test ends by the same account: each record is at the destination; none is there twice unless ``doubles_allowed``, and
then it was counted; each file's records stand in order; every byte is accounted for; nothing is in the dead letters; and
the sink is well again.
"""

from __future__ import annotations

import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest

from shipper import registry
from shipper.sink import Sink
from shipper.testing.batches import make_batch, make_resource
from shipper.testing.clock import JumpingClock
from shipper.testing.http_server import HttpServer, Reply
from shipper.testing.proxy import Cut, FaultProxy
from shipper.testing.rig import Rig

HOUR = 3_600.0
_FILES = ("/logs/one", "/logs/two")
_BATCH = 10
_STEP_NS = 1_000_001
_CUTS: tuple[Cut, ...] = ("before", "half", "after")
#: Records of one write, so that there are several.
_LIMIT = 20
#: The most attempts in an hour: the back-off's ceiling is 30 s, of which it waits 55 % on average.
_ATTEMPTS = 400


class FaultContract(ABC):
    """Inherit and implement `upstream`, `sections` and `ids`.

    ``doubles_allowed``: a record may be stored twice when an answer was lost; it must be counted then.
    ``counts_doubles``: such a request is counted; by default where doubles are allowed. Set it where the backend folds
    doubles by a rule that does not always hold.
    ``keeps_order``: `arrived` gives the records of one file in the order of the file.
    ``hasty``: options that make the sink give up an answer after some 200 ms.
    """

    doubles_allowed: ClassVar[bool] = False
    counts_doubles: ClassVar[bool | None] = None
    keeps_order: ClassVar[bool] = True
    hasty: ClassVar[dict[str, Any]] = {"timeout": "200ms"}

    # Hooks

    @abstractmethod
    def upstream(self) -> tuple[str, int]:
        """Give the address of the real server, or the stand-in."""

    @abstractmethod
    def sections(self, port: int) -> dict[str, Any]:
        """Give the section of a sink that reaches the server through the proxy on ``port`` of 127.0.0.1."""

    @abstractmethod
    def ids(self) -> list[str]:
        """Give the ids of all records stored, doubles included."""

    def make_sink(self, section: dict[str, Any]) -> Sink:
        """Make the sink of a section, as the daemon would."""
        cls = registry.sink(section["type"])
        return cls(msgspec.convert(section, cls.config))

    def arrived(self) -> list[str]:
        """Give the ids in the order in which they were stored, if the backend can tell."""
        return self.ids()

    def is_write(self, sent: bytes) -> bool:
        """Tell whether these bytes, as a client sent them, begin a request that stores records."""
        return b"POST " in sent

    def start_ns(self) -> int:
        """Give the time of the first record: a minute ago, because many backends refuse what is old."""
        return time.time_ns() - 60 * 10**9

    def lock_out(self, rig: Rig) -> None:
        """Make the server refuse the sink's login, and let it in again after 100 s of ``rig.clock``."""
        del rig
        pytest.skip("no way to refuse the login is known")

    def hang_up(self) -> None:
        """Make the server close the connections that are open."""
        pytest.skip("no way to make the server hang up is known")

    # The network

    def test_without_faults_each_record_is_stored_once(self, tmp_path: Path) -> None:
        """And nothing is tried again."""
        with self._rig(tmp_path) as (rig, _):
            written = self._feed(rig)
            rig.run()
            assert rig.waits == []
            self._account(rig, written, doubles=False)

    def test_latency(self, tmp_path: Path) -> None:
        """A slow network makes it slow, and nothing else."""
        with self._rig(tmp_path) as (rig, proxy):
            proxy.switch("latency", seconds=0.005)
            written = self._feed(rig)
            rig.run()
            assert rig.waits == []
            self._account(rig, written, doubles=False)

    def test_answer_that_takes_too_long(self, tmp_path: Path) -> None:
        """The sink gives up by its timeout and sends again; the first request may have arrived."""
        with self._rig(tmp_path, **self.hasty) as (rig, proxy):
            proxy.switch("latency", seconds=1.0)
            rig.clock.at(0.0, lambda: proxy.switch("pass"))
            written = self._feed(rig, batches=1)
            rig.run()
            assert rig.waits
            proxy.close()  # what is still on its way is gone
            self._account(rig, written)

    def test_reset(self, tmp_path: Path) -> None:
        """Every connection is reset for a minute, the open ones as well."""
        with self._rig(tmp_path) as (rig, proxy):
            proxy.switch("reset")
            rig.clock.at(60.0, lambda: proxy.switch("pass"))
            written = self._feed(rig)
            rig.run()
            assert rig.clock.monotonic() >= 60
            self._account(rig, written, doubles=False)

    @pytest.mark.parametrize("where", _CUTS)
    def test_connection_cut_around_a_write(self, tmp_path: Path, where: Cut) -> None:
        """Before the server saw the request, within its answer, and after it did everything and before it was heard."""
        with self._rig(tmp_path) as (rig, proxy):
            proxy.cut_when(self.is_write, answer=where, more=[where] * 2)
            written = self._feed(rig)
            rig.run()
            proxy.wait_for_cuts(3)
            assert proxy.cuts == 3
            self._account(rig, written, doubles=where != "before")

    def test_slow_close(self, tmp_path: Path) -> None:
        """The server closes, and the client learns it late: a request on a connection that is no more."""
        with self._rig(tmp_path) as (rig, proxy):
            proxy.switch("slow_close", seconds=0.2)
            written = self._feed(rig, batches=1)
            rig.start()
            _eventually(lambda: rig.acked == _count(written))
            self.hang_up()
            more = self._feed(rig, start_ns=self.start_ns() + 10**9, batches=2)
            rig.finish()
            self._account(rig, {path: written[path] + more[path] for path in written})

    def test_network_that_fails_all_the_time(self, tmp_path: Path) -> None:
        """A dozen faults of every kind, in an order by chance, each right after the recovery from the last."""
        rng = random.Random(7)  # noqa: S311 - to be repeated
        with self._rig(tmp_path) as (rig, proxy):
            first, *more = rng.sample(_CUTS * 4, 12)
            proxy.cut_when(self.is_write, answer=first, more=more)
            written = self._feed(rig, batches=20)
            rig.run()
            assert proxy.cuts == 12
            self._account(rig, written)

    # The server

    def test_refused_login_parks_and_loses_nothing(self, tmp_path: Path) -> None:
        """The operator's fault costs no record: parked, kept, and delivered once it is mended."""
        with self._rig(tmp_path) as (rig, _):
            self.lock_out(rig)
            written = self._feed(rig)
            rig.run()
            assert "parked" in rig.states
            assert rig.clock.monotonic() >= 2
            self._account(rig, written, doubles=False)

    def test_hour_of_outage(self, tmp_path: Path) -> None:
        """Nobody listens for an hour while lines go on coming: they wait on disk, and come in order."""
        with self._rig(tmp_path) as (rig, proxy):
            start = self.start_ns()
            written = self._feed(rig, start_ns=start)
            rig.start()
            _eventually(lambda: rig.acked == _count(written))
            spilled: list[int] = []

            def add(index: int) -> None:
                for path, ids in self._feed(rig, start_ns=start + index * 10**9).items():
                    written[path] += ids
                spilled.append(rig.buffer.spill_bytes)

            proxy.switch("refuse")
            proxy.reset_all()
            rig.clock.at(HOUR / 4, lambda: add(2))
            rig.clock.at(HOUR / 2, lambda: add(3))
            rig.clock.at(HOUR, lambda: proxy.switch("pass"))
            add(1)
            rig.finish()
            assert rig.clock.monotonic() >= HOUR
            assert len(rig.waits) < _ATTEMPTS
            assert all(spilled[1:])
            assert _count(written) == 4 * 5 * 2 * _BATCH
            self._account(rig, written, doubles=False)

    # What the tests stand on

    @contextmanager
    def _rig(self, tmp_path: Path, **options: Any) -> Iterator[tuple[Rig, FaultProxy]]:
        with FaultProxy(self.upstream()) as proxy:
            sink = self.make_sink({**self.sections(proxy.port), **options})
            sink.limits = msgspec.structs.replace(sink.limits, records=min(_LIMIT, sink.limits.records))
            rig = Rig(tmp_path, sink, clock=JumpingClock(time.time_ns()))
            try:
                yield rig, proxy
            finally:
                rig.close()

    def _feed(self, rig: Rig, *, start_ns: int | None = None, batches: int = 5) -> dict[str, list[str]]:
        """Put batches of two files in turn; gives the ids of each file."""
        start = self.start_ns() if start_ns is None else start_ns
        sink = rig.delivery.sink
        written: dict[str, list[str]] = {path: [] for path in _FILES}
        for index in range(batches):
            for place, path in enumerate(_FILES):
                batch = make_batch(
                    [f"{path} {start} line {index * _BATCH + row}" for row in range(_BATCH)],
                    start_ns=start + (index * len(_FILES) + place) * _BATCH * _STEP_NS,
                    step_ns=_STEP_NS,
                    resource=make_resource(f"service-{place}"),
                    attributes={"user_id": "42"},
                    parsed=sink.wants_parse,
                )
                if not sink.wants_parse and sink.wants_levels:
                    batch.severities = [9] * len(batch)
                written[path] += batch.ids
                rig.put(path, batch)
        return written

    def _account(self, rig: Rig, written: dict[str, list[str]], *, doubles: bool = True) -> None:
        """Check what is stored against what was written. ``doubles`` says that this fault may make any."""
        stored, expected = self.ids(), {one for ids in written.values() for one in ids}
        assert rig.dead() == []
        assert expected - set(stored) == set(), f"lost; {rig.why()}"
        assert set(stored) - expected == set(), "stored under other ids than were written"
        extra = len(stored) - len(expected)
        if extra:
            assert self.doubles_allowed, f"{extra} records are stored twice"
            assert doubles, f"{extra} records are stored twice after a fault that leaves no doubt"
            counted = rig.maybe_doubled
            assert extra <= counted * _LIMIT, f"{extra} records are stored twice, and {counted} requests were counted"
        if not (self.doubles_allowed if self.counts_doubles is None else self.counts_doubles):
            assert rig.maybe_doubled == 0, "counted as doubled, where the backend tells doubles"
        if self.keeps_order:
            arrived = list(dict.fromkeys(self.arrived()))
            for path, ids in written.items():
                assert [one for one in arrived if one in set(ids)] == ids, f"{path}: out of order"
        assert rig.safe(), "some bytes are not accounted for"
        assert rig.acked == len(expected)
        assert rig.state() == "ok"


class HttpFaultContract(FaultContract):
    """Set ``server`` (in a fixture, say) to a stand-in with the methods ``sink``, ``ids`` and, if it can, ``arrived``.

    ``later`` are the statuses after which this backend wants the same request again, ``locked`` those that park. A backend
    with its own form of refusals overrides `reply`.
    """

    later: ClassVar[tuple[int, ...]] = (429, 500, 502, 503, 504)
    locked: ClassVar[tuple[int, ...]] = (401, 403)
    server: Any  # an HttpServer with ``sink`` and ``ids``

    def upstream(self) -> tuple[str, int]:
        """See `FaultContract.upstream`."""
        return "127.0.0.1", self.server.port

    def sections(self, port: int) -> dict[str, Any]:
        """Give the stand-in's own section, with the proxy's port in every address."""
        section: dict[str, Any] = _redirected(self.server.sink(), f":{self.server.port}", f":{port}")
        return section

    def ids(self) -> list[str]:
        """See `FaultContract.ids`."""
        ids: list[str] = self.server.ids()
        return ids

    def arrived(self) -> list[str]:
        """See `FaultContract.arrived`."""
        arrived: list[str] = self.server.arrived() if hasattr(self.server, "arrived") else self.server.ids()
        return arrived

    def reply(self, status: int, headers: dict[str, str] | None = None) -> Reply:
        """Make a refusal."""
        return Reply(status, b"refused by a test", headers or {})

    def lock_out(self, rig: Rig) -> None:
        """See `FaultContract.lock_out`: three requests are refused."""
        del rig
        self._script(*[self.reply(self.locked[0])] * 3)

    def hang_up(self) -> None:
        """Close with an answer: the next request is refused, and its connection closed."""
        self._script(self.reply(503, {"Connection": "close"}))

    def test_retry_after_in_seconds_is_honoured(self, tmp_path: Path) -> None:
        """The backend's own word wins over the back-off, and the sink counts as throttled."""
        with self._rig(tmp_path) as (rig, _):
            self._script(self.reply(429, {"Retry-After": "17"}), self.reply(503, {"Retry-After": "400"}))
            written = self._feed(rig)
            rig.run()
            assert rig.waits == [17.0, 400.0]
            assert rig.states == ["throttled", "throttled"]
            self._account(rig, written, doubles=False)

    def test_retry_after_as_a_date_is_honoured(self, tmp_path: Path) -> None:
        """The other form of the header."""
        with self._rig(tmp_path) as (rig, _):
            self._script(self.reply(429, {"Retry-After": formatdate(time.time() + 100, usegmt=True)}))
            written = self._feed(rig)
            rig.run()
            assert len(rig.waits) == 1
            assert 80 < rig.waits[0] <= 100
            self._account(rig, written, doubles=False)

    def test_each_status_that_means_later_is_tried_again(self, tmp_path: Path) -> None:
        """Three times each, without the request having been taken."""
        with self._rig(tmp_path) as (rig, _):
            self._script(*[self.reply(status) for status in self.later for _ in range(3)])
            written = self._feed(rig)
            rig.run()
            assert len(rig.waits) == 3 * len(self.later)
            assert "parked" not in rig.states
            self._account(rig, written, doubles=False)

    def test_gateway_that_gives_up_after_the_server_took_it(self, tmp_path: Path) -> None:
        """The request was stored, and 504 is what the sink is told."""
        with self._rig(tmp_path) as (rig, _):
            rig.delivery.sink.open()  # so that the next request is a write
            self._script(*[self.reply(504)] * 2, stored=True)
            written = self._feed(rig)
            rig.run()
            assert len(rig.waits) == 2
            self._account(rig, written)

    def test_each_status_that_means_the_operator_parks(self, tmp_path: Path) -> None:
        """And costs no record."""
        with self._rig(tmp_path) as (rig, _):
            written = self._feed(rig, batches=1)
            rig.start()
            _eventually(lambda: rig.acked == _count(written))
            self._script(*[self.reply(status) for status in self.locked])
            for path, ids in self._feed(rig, start_ns=self.start_ns() + 10**9).items():
                written[path] += ids
            rig.finish()
            assert rig.states == ["parked"] * len(self.locked)
            self._account(rig, written, doubles=False)

    def _script(self, *replies: Reply, stored: bool = False) -> None:
        server: HttpServer = self.server
        server.script(*replies, stored=stored)


def _count(written: dict[str, list[str]]) -> int:
    return sum(map(len, written.values()))


def _redirected(value: Any, old: str, new: str) -> Any:
    if isinstance(value, str):
        return value.replace(old, new)
    if isinstance(value, dict):
        return {key: _redirected(item, old, new) for key, item in value.items()}
    if isinstance(value, list):
        return [_redirected(item, old, new) for item in value]
    return value


def _eventually(condition: Callable[[], bool], *, timeout: float = 20.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("it did not come about")
        time.sleep(0.005)
