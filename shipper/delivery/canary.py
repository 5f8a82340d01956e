"""The canary: one record that is written, and read back where that can be, to prove a sink before lines depend on it.

Nothing of the running pipeline is used: each proof makes an instance of the sink of its own and closes it. A sink
that takes no canary (`Sink.takes_canary`) proves itself by its health check.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, cast

from shipper import registry
from shipper.errors import ConfigError, ParkedError, PermanentError, SinkError
from shipper.reader import Query
from shipper.record import SEVERITIES, Batch, Resource
from shipper.secret import Masker, masked_url, secret_values
from shipper.sink import Finding
from shipper.units import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from shipper.clock import Clock
    from shipper.reader import Reader
    from shipper.sink import Change, SinkConfig

#: Seconds in which all sinks together must be proven.
PROOF = 30.0
#: Seconds a canary that was written may take to become visible before that is told as a warning.
VISIBLE = 8.0
#: Nanoseconds around its time in which a canary is looked for: some backends round.
_AROUND = 2_000_000_000
#: Seconds between looks for a signal.
_LOOK = 0.05
_MESSAGE = "shipper canary: a test record, written to prove that this sink takes records; ignore or delete it"


def make_canary(clock: Clock) -> Batch:
    """Make a batch of one record with a fresh id, stamped now."""
    now = clock.time_ns()
    return Batch(
        times=[now],
        stamps=[now],
        hashes=[int.from_bytes(os.urandom(16))],
        raws=[_MESSAGE],
        resources=[Resource("shipper", {"service.name": "shipper", "host.name": os.uname().nodename})],
        offsets=[0],
        severities=[SEVERITIES["info"]],
        messages=[_MESSAGE],
        attributes=[{"shipper.canary": True}],
        size=len(_MESSAGE),
    )


def examine(section: SinkConfig, *, clock: Clock, canary: bool = True) -> Iterator[Finding]:
    """Examine a sink and then, unless told otherwise or it already failed, prove it. Never raises.

    Nothing but the canary is written. A file of this machine that is not there yet gets none: it would belong to whoever
    asks, root mostly, and the daemon could not write it. Neither does a destination where something would be made for
    it, such as a table.
    """
    mask = Masker(secret_values(section))
    for finding in _examined(section, clock=clock, canary=canary):
        yield _masked(finding, mask)


def _examined(section: SinkConfig, *, clock: Clock, canary: bool) -> Iterator[Finding]:
    failed = False
    wanted: list[Change] = []
    try:
        cls = registry.sink(section.type)
        sink = cls(section)
        try:
            for finding in sink.examine():
                failed = failed or finding.verdict == "fail"
                yield finding
            if canary and cls.takes_canary and not failed:
                wanted = [change for change in sink.changes() if change.ours]
        finally:
            sink.close()
    except ConfigError as error:
        yield Finding("open", "fail", str(error), "mend its section")
        return
    except SinkError as error:
        yield Finding("open", "fail", str(error), _fix(error))
        return
    except Exception as error:  # noqa: BLE001 - the other sinks are still to be looked at
        yield Finding("examine", "fail", f"{type(error).__name__}: {error}", "a bug of the sink; please report it")
        return
    if not canary or not cls.takes_canary or failed:
        return
    path = getattr(section, "path", None)
    if isinstance(path, str) and path.startswith("/") and not os.path.lexists(path):
        yield Finding("write", "ok", f"{path} is not there yet; the daemon makes it, so no canary was written")
        return
    if wanted:
        yield Finding("write", "ok", f"no canary was written, because that would first make: {_summary(wanted)}")
        return
    yield from prove(section, clock=clock)


def _summary(changes: list[Change]) -> str:
    """Say in a line what would be made."""
    first = changes[0].text.partition("(")[0].strip()
    more = f" and {counted(len(changes) - 1, 'more statement')}" if len(changes) > 1 else ""
    return f"{first}{more}; the daemon makes it at its first start, shipper prepare at once"


def prove(section: SinkConfig, *, clock: Clock, visible: float = VISIBLE, write: bool = True) -> list[Finding]:
    """Prove a sink; findings ``open`` or ``write``, then ``read``. One that fails is the last. Never raises.

    ``visible`` is the seconds to wait for the canary to become visible; ``write=False`` writes none.
    """
    mask = Masker(secret_values(section))
    return [_masked(finding, mask) for finding in _proven(section, clock, visible, write=write)]


def _masked(finding: Finding, mask: Masker) -> Finding:
    """Hide the sink's secrets, which the error of a driver may quote."""
    evidence, fix = (masked_url(mask.exactly(text)) for text in (finding.evidence, finding.fix))
    return Finding(finding.what, finding.verdict, evidence, fix)


def _proven(section: SinkConfig, clock: Clock, visible: float, *, write: bool) -> list[Finding]:
    try:
        return _prove(section, clock, visible, write=write)
    except SinkError as error:
        return [Finding("write", "fail", str(error), _fix(error))]
    except ConfigError as error:
        return [Finding("open", "fail", str(error), "mend its section")]
    except Exception as error:  # noqa: BLE001 - a bug of a sink refuses the switch; it must not end the daemon
        return [Finding("write", "fail", f"{type(error).__name__}: {error}", "a bug of the sink; please report it")]


def _prove(section: SinkConfig, clock: Clock, visible: float, *, write: bool) -> list[Finding]:
    sink = registry.sink(section.type)(section)
    try:
        if not (write and sink.takes_canary):
            sink.healthcheck()
            return [Finding("open", "ok", "healthy; it takes no canary" if write else "healthy")]
        sink.open()
        canary = make_canary(clock)
        sink.write(canary)
    finally:
        sink.close()
    return [Finding("write", "ok", f"canary {canary.ids[0]} written"), *_read_back(section, canary, clock, visible)]


def _read_back(section: SinkConfig, canary: Batch, clock: Clock, visible: float) -> list[Finding]:
    """Look for the canary until it is visible. What fails here is a warning: shipping needs no right to read."""
    cls = registry.reader(section.type)
    if cls is None:
        return []
    begin = clock.monotonic()
    query = Query(since=canary.times[0] - _AROUND, until=canary.times[0] + _AROUND)
    pause = 0.1
    try:
        reader = cast("Callable[[SinkConfig], Reader]", cls)(section)
        try:
            while True:
                if any(record.id == canary.ids[0] for record in reader.read(query)):
                    return [Finding("read", "ok", f"read back after {clock.monotonic() - begin:.1f} s")]
                if clock.monotonic() - begin + pause > visible:
                    break
                clock.wait(threading.Event(), pause)
                pause = min(pause * 2, 1.0)
        finally:
            reader.close()
    except Exception as error:  # noqa: BLE001 - see the docstring
        return [
            Finding("read", "warn", f"cannot be read back: {error}", "let its account read, if you want to query it")
        ]
    text = f"the canary was taken but is not visible after {visible:g} s"
    return [Finding("read", "warn", text, "look for it later with shipper query service:shipper")]


def _fix(error: SinkError) -> str:
    if isinstance(error, ParkedError):
        return "mend login, rights, quota or schema at the destination, or its section"
    if isinstance(error, PermanentError):
        return "the destination refuses a plain record: check its schema and limits"
    return "make sure that it runs and can be reached from here, then try again"


def prove_all(
    sections: Mapping[str, SinkConfig],
    *,
    clock: Clock,
    seconds: float = PROOF,
    interrupted: Callable[[], bool] = lambda: False,
) -> dict[str, list[Finding]] | None:
    """Prove sinks side by side within ``seconds``; give the findings by name, or ``None`` when interrupted.

    A sink that gives no answer in time fails; its thread is left to end by itself.
    """
    found: dict[str, list[Finding]] = {}
    visible = min(VISIBLE, seconds / 2)

    def run(name: str, section: SinkConfig) -> None:
        found[name] = prove(section, clock=clock, visible=visible)

    threads = [
        threading.Thread(target=run, args=item, name=f"proof-{item[0]}", daemon=True) for item in sections.items()
    ]
    for thread in threads:
        thread.start()
    deadline = clock.monotonic() + seconds
    while any(thread.is_alive() for thread in threads) and clock.monotonic() < deadline:
        if interrupted():
            return None
        next(thread for thread in threads if thread.is_alive() or thread is threads[-1]).join(_LOOK)
    if interrupted():
        return None
    late = Finding("write", "fail", f"no answer within {seconds:g} s", "make sure that it can be reached from here")
    return {name: found.get(name, [late]) for name in sections}
