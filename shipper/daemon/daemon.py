"""The daemon: one pipeline after another, driven by signals.

* SIGTERM or SIGINT: drain within ``shutdown_timeout``, then exit; a second one stops at once.
* SIGHUP: reload. The new configuration is loaded, checked and built beside the running pipeline, and every sink that
  is new in use or whose section changed is proven (`shipper.delivery.canary`); only then is the old pipeline drained and the new
  one started, from the same state. A refused configuration changes nothing and is reported.

Why no line is in neither sink nor in both: the old pipeline ends with every line that it read acked by its sinks or
in their spills, and the positions saved behind it. The new one reads from there on. What is in a spill goes to the
sink it was spilled for, whether that still gets records, is out of use, or was removed by this reload.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import resource
import signal
import threading
from typing import TYPE_CHECKING, NamedTuple

from shipper import __version__
from shipper.clock import SystemClock
from shipper.config.loader import fingerprint, load
from shipper.config.types import HttpConfig
from shipper.daemon.notify import Supervisor
from shipper.daemon.parts import Parts
from shipper.daemon.pipeline import Pipeline
from shipper.delivery.canary import prove_all
from shipper.delivery.survey import StateSurvey, pending_spills
from shipper.errors import ConfigError, ShipperError, StateError
from shipper.secret import Masker, secret_values
from shipper.telemetry.health import Health
from shipper.telemetry.logs import get_logger
from shipper.telemetry.metrics import Metrics
from shipper.telemetry.status import ConfigStatus, Status

if TYPE_CHECKING:
    from shipper.config.types import Config
    from shipper.sink import SinkConfig
    from shipper.telemetry.http import HttpServer

log = get_logger("daemon")

#: Seconds a reload leaves the old pipeline to drain; what is left is spilled or read again.
RELOAD_DRAIN = 10.0
#: Exit codes of ``shipper run``.
OK, FAULT, SOMETHING_LEFT = 0, 1, 3


class _Loaded(NamedTuple):
    """The hash of the running configuration's file, and when it began to run (monotonic)."""

    digest: str
    at: float


class Daemon:
    """Runs a configuration until told to stop."""

    def __init__(self, config: Config, *, once: bool = False, mask: Masker | None = None) -> None:
        """``mask`` hides secrets in what is said; it learns those of every configuration that is loaded later."""
        self._config = config
        self._mask = mask or Masker(secret_values(config))
        self._once = once
        self._clock = SystemClock()
        self._metrics = Metrics()
        self._health = Health(self._clock, mask=self._mask)
        self._supervisor = Supervisor(self._health, self._clock, os.environ, pid=os.getpid())
        self._signals: list[int] = []
        self._event = threading.Event()
        self._http: HttpServer | None = None
        self._pipeline: Pipeline | None = None
        self._survey = StateSurvey(config.state_dir)
        self._began = self._clock.monotonic()
        self._loaded = _Loaded("", self._began)

    def run(self) -> int:
        """Run; give the exit code. Raises ConfigError or StateError when it cannot begin."""
        # Batches are large, acyclic and short-lived: frequent collections would only walk them.
        gc.set_threshold(100_000, 50, 100)
        _raise_file_limit()
        if self._supervisor.watched:
            # The watchdog's SIGABRT then writes where every thread stood.
            faulthandler.enable()
        parts = self._parts = _built(self._config, {}, self._mask)
        self._install_signals()
        if self._config.http.enabled and not self._once:
            from shipper.telemetry.http import HttpServer  # noqa: PLC0415 - only who listens pays for it

            server = HttpServer(self._config.http, self._metrics, self._health, self.status, mask=self._mask)
            try:
                server.start()
            except ConfigError as error:
                # An address that somebody chose is watched by somebody; the default one is a convenience.
                if self._config.http.listen != HttpConfig().listen:
                    raise
                log.warning("no metrics and health over HTTP: the default address is taken", error=str(error))
            else:
                self._http = server
        pipeline = self._start(parts)
        try:
            while True:
                signum = self._next_signal(pipeline)
                if signum == signal.SIGHUP:
                    self._supervisor.reloading()
                    pipeline = self._reload(pipeline)
                    self._supervisor.reloaded()
                    continue
                break
            failed = not self._health.alive()
            if signum:
                log.info("stopping", signal=signal.Signals(signum).name, seconds=self._config.shutdown_timeout)
            left = pipeline.leftovers() if self._once and not signum else 0
            self._supervisor.stopping(self._config.shutdown_timeout)
            pipeline.stop(self._config.shutdown_timeout, now=self._told_to_stop)
        finally:
            if self._http is not None:
                self._http.stop()
        if failed:
            return FAULT
        log.info("stopped")
        return SOMETHING_LEFT if left else OK

    def status(self) -> Status:
        """Tell how everything stands, for /status. Called by the HTTP server's threads."""
        now, pipeline, series = self._clock.monotonic(), self._pipeline, self._metrics.series()
        components = self._health.components()
        refused = components.get("config")
        try:
            waiting = self._survey.waiting(self._clock.time_ns() / 1e9)
        except (OSError, StateError) as error:
            log.warning("what waits in the state directory cannot be counted", error=str(error))
            waiting = {}
        return Status(
            version=__version__,
            pid=os.getpid(),
            uptime=now - self._began,
            config=ConfigStatus(
                path=str(self._config.path.absolute()) if self._config.path else "",
                hash=self._loaded.digest,
                loaded_seconds=now - self._loaded.at,
                valid=self._metrics.value("shipper_config_valid") > 0,
                detail=refused.detail if refused else "",
            ),
            state_dir=str(self._config.state_dir),
            faults=self._health.faults(),
            troubles={
                name: f"is {item.state}: {item.detail}"
                for name, item in components.items()
                if item.state not in {"ok", "starting"} and not name.startswith(("sink:", "source:"))
            },
            sources=pipeline.sources() if pipeline else {},
            sinks=pipeline.sinks() if pipeline else {},
            waiting=waiting,
            dropped_lines={cause: round(count) for (cause,), count in series["shipper_dropped_total"].items()},
            lost_bytes={cause: round(count) for (cause,), count in series["shipper_lost_bytes_total"].items()},
        )

    def _start(self, parts: Parts) -> Pipeline:
        pipeline = Pipeline(parts, clock=self._clock, metrics=self._metrics, health=self._health, once=self._once)
        pipeline.start()
        gc.freeze()
        self._config, self._parts, self._pipeline = parts.config, parts, pipeline
        self._loaded = _Loaded(fingerprint(parts.config.path), self._clock.monotonic())
        self._metrics.set_config(valid=True, digest=self._loaded.digest)
        for name in pending_spills(parts.config.state_dir):
            if name not in parts.config.sinks and name not in parts.draining:
                log.warning(
                    "undelivered lines wait for a sink that is not configured; put its section back to deliver them,"
                    " or drop them with: shipper spill drop",
                    sink=name, directory=str(parts.config.state_dir / "spill" / name),
                )  # fmt: skip
        log.info(
            "started",
            pid=os.getpid(), sources=sorted(parts.config.sources), sinks=list(parts.router.sinks),
            config=str(parts.config.path), state_dir=str(parts.config.state_dir),
        )  # fmt: skip
        return pipeline

    def _reload(self, pipeline: Pipeline) -> Pipeline:
        path = self._config.path
        if path is None:
            log.warning("nothing to reload: this configuration did not come from a file")
            return pipeline
        try:
            removed = {**self._parts.removed, **self._config.sinks}
            config = load(path, os.environ)
            self._mask.add(secret_values(config))
            parts = _built(config, removed, self._mask)
            if parts.config.state_dir != self._config.state_dir:
                raise ConfigError("state_dir cannot change while running; restart the daemon to move the state")  # noqa: TRY301 - one way to refuse
            if not self._prove(parts):
                log.warning("reload given up: told to stop")
                return pipeline
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a file makes our code raise, the daemon runs on
            self._refused(error)
            return pipeline
        old, was = self._config, self._parts
        log.info("reloading", config=str(path))
        pipeline.stop(min(RELOAD_DRAIN, old.shutdown_timeout), now=self._told_to_stop)
        parts = parts.with_draining()
        for name in was.running.keys() | old.sinks.keys():
            self._health.remove(f"sink:{name}")
            if name not in parts.config.sinks and name not in parts.draining:
                self._metrics.forget_sink(name)
        for name in old.sources:
            self._health.remove(f"source:{name}")
        try:
            started = self._start(parts)
        except Exception as error:  # noqa: BLE001 - the configuration that ran until now goes on
            restored = self._start(Parts.build(old, was.removed))
            self._refused(error)  # last, for a start says that its configuration is valid
            return restored
        self._metrics.reloaded("ok")
        self._health.report("config", "ok")
        files, size = started.positions()
        log.info(
            "switched: lines behind this position go to the new sinks",
            sinks=list(parts.router.sinks), was=list(was.router.sinks), files=files, bytes=size,
        )  # fmt: skip
        for name, size in started.draining().items():
            log.info("still draining: what this sink was given before goes to it", sink=name, bytes=size)
        return started

    def _prove(self, parts: Parts) -> bool:
        """Prove every sink that is new in use or changed, while the old pipeline runs on.

        A sink that runs under an equal section is proven by running; a file has one writer. Gives False when told to
        stop meanwhile. Raises ConfigError when a sink fails.
        """
        running = self._parts.running
        fresh = {name: parts.section(name) for name in parts.sinks if running.get(name) != parts.section(name)}
        if not fresh:
            return True
        found = prove_all(fresh, clock=self._clock, interrupted=self._told_to_stop)
        if found is None:
            return False
        faults: list[str] = []
        for name, findings in found.items():
            for finding in findings:
                if finding.verdict == "fail":
                    faults.append(f"sink {name} failed its proof ({finding.what}): {finding.evidence}; {finding.fix}")
                elif finding.verdict == "warn":
                    log.warning("sink proven but for this", sink=name, found=finding.evidence, fix=finding.fix)
            if not any(finding.verdict == "fail" for finding in findings):
                log.info("sink proven", sink=name, by="; ".join(f.evidence for f in findings if f.verdict == "ok"))
        if faults:
            raise ConfigError(*faults)
        return True

    def _refused(self, error: BaseException) -> None:
        text = str(error) if isinstance(error, ShipperError) else f"{type(error).__name__}: {error}"
        self._metrics.set_config(valid=False)
        self._metrics.reloaded("refused")
        self._health.report("config", "ok", f"the file is refused, the old configuration stays: {text}")
        more = {} if isinstance(error, ShipperError) else {"exc_info": error}
        log.error("reload refused; the old configuration stays", error=text, **more)

    def _install_signals(self) -> None:
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(signum, self._on_signal)

    def _on_signal(self, signum: int, _frame: object) -> None:
        self._signals.append(signum)
        self._event.set()

    def _next_signal(self, pipeline: Pipeline) -> int:
        """Wait for a signal, for the end of ``--once``, or for a fault; give the signal or 0."""
        while True:
            if self._signals:
                return self._take_signal()
            if pipeline.finished.is_set():
                return 0
            self._supervisor.tick()
            self._event.clear()
            if not self._signals:
                # A timeout, because the pipeline's end does not set our event.
                self._event.wait(0.02 if self._once else self._supervisor.pause)

    def _take_signal(self) -> int:
        """Take one signal: an end before a reload, and any number of reloads as one."""
        # Only operations that a signal cannot interrupt: the handler appends to the same list.
        signum = next((one for one in tuple(self._signals) if one != signal.SIGHUP), signal.SIGHUP)
        self._signals.remove(signum)
        while signum == signal.SIGHUP and signal.SIGHUP in self._signals:
            self._signals.remove(signal.SIGHUP)
        return signum

    def _told_to_stop(self) -> bool:
        """Tell whether a signal to end has come. Asked in every long wait of the main thread, which so goes round."""
        self._supervisor.tick()
        return any(signum != signal.SIGHUP for signum in self._signals)


def _built(config: Config, removed: dict[str, SinkConfig], mask: Masker) -> Parts:
    """Build what a configuration names. Raises ConfigError, whatever it is that it makes our code raise."""
    try:
        return Parts.build(config, removed)
    except ShipperError:
        raise
    except Exception as error:
        raise ConfigError(f"this configuration cannot be used: {type(error).__name__}: {mask(str(error))}") from error


def _raise_file_limit() -> None:
    """Allow as many open files as the system lets us: every file that is read is held open."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (ValueError, OSError) as error:
        log.warning("the limit of open files stays as it is", error=str(error))
