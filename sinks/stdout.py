"""Print records to standard output, as text for people or JSON lines for programs.

Delivered means: the kernel took the bytes. Past a pipe nothing is known, so what the reader had not yet read when
it died is lost to it. Bytes go to the descriptor itself, one write per batch; Python's text layer is not involved.
If only part of a batch could be written, the records written are taken and the others are tried again; the rest of
a record that was cut in the middle is kept and written first.

A reader that went away (EPIPE) parks the sink: the records are kept, and the same pipe will never be read again.
"""

from __future__ import annotations

import errno
import os
import select
import stat
from typing import TYPE_CHECKING, Annotated, ClassVar

from msgspec import Meta

from shipper.errors import ParkedError, PartialError, RetryableError, SinkError
from shipper.sink import Finding, Sink, SinkConfig
from sinks import _render

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shipper.record import Batch


class StdoutConfig(SinkConfig, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Print records to standard output."""

    format: Annotated[
        str, Meta(description="text is for people, json one JSON object per line.", pattern="^(text|json)$")
    ] = "text"


class StdoutSink(Sink):
    """Writes rendered lines to a descriptor, 1 unless told otherwise.

    ``patience`` is the seconds that one write waits for a reader when the descriptor is non-blocking (inherited
    that way from a parent); then the records not yet written are handed back as retryable.
    """

    config: ClassVar[type[SinkConfig]] = StdoutConfig
    takes_canary: ClassVar[bool] = False

    def __init__(self, config: StdoutConfig, *, descriptor: int = 1, patience: float = 5.0) -> None:
        self._lines = _render.terminal_json_lines if config.format == "json" else _render.text_lines
        self._descriptor = descriptor
        self._patience = patience
        self._rest = b""

    def open(self) -> None:
        """Check that the descriptor is open. Raises ParkedError when the daemon was started without one."""
        try:
            os.fstat(self._descriptor)
        except OSError as error:
            raise _error(error) from error

    def write(self, batch: Batch) -> None:
        """Print the batch. Raises PartialError when only the first records could be written."""
        if self._rest:  # the record this belongs to was counted as taken
            done, failure = self._push(self._rest)
            self._rest = self._rest[done:]
            if failure is not None:
                raise failure
        lines = self._lines(batch)
        data = b"".join(lines)
        done, failure = self._push(data)
        if failure is None:
            return
        if done == 0:
            raise failure
        start = 0
        failed: dict[int, SinkError] = {}
        for index, line in enumerate(lines):
            if start >= done:
                failed[index] = failure
            elif start + len(line) > done:
                self._rest = line[done - start :]
            start += len(line)
        if failed:
            raise PartialError(failed, code=failure.code) from failure

    def examine(self) -> Iterator[Finding]:
        """Say whether the descriptor is open and what it is."""
        try:
            mode = os.fstat(self._descriptor).st_mode
        except OSError as error:
            yield Finding("open", "fail", str(_error(error)), "start shipper with a standard output")
            return
        kind = "a pipe" if stat.S_ISFIFO(mode) else "a file" if stat.S_ISREG(mode) else "a terminal or device"
        yield Finding("open", "ok", f"standard output is {kind}")

    def close(self) -> None:
        """Write what is left of a record that was cut, if the reader takes it at once."""
        if self._rest:
            self._patience = 0.0
            done, _ = self._push(self._rest)
            self._rest = self._rest[done:]

    def _push(self, data: bytes) -> tuple[int, RetryableError | None]:
        """Write all of it if possible. Gives the number of bytes written and what stopped it."""
        done = 0
        view = memoryview(data)
        while done < len(data):
            try:
                done += os.write(self._descriptor, view[done:])
            except BlockingIOError as error:
                poll = select.poll()
                poll.register(self._descriptor, select.POLLOUT)
                if not poll.poll(self._patience * 1000):
                    return done, _error(error)
            except OSError as error:
                return done, _error(error)
        return done, None


def _error(error: OSError) -> RetryableError:
    code = errno.errorcode.get(error.errno or 0, "")
    if error.errno == errno.EPIPE:
        return ParkedError("standard output: its reader is gone; start shipper again with a reader", code=code)
    if error.errno == errno.EBADF:
        return ParkedError("standard output is closed; start shipper with one, or use another sink", code=code)
    if error.errno == errno.EAGAIN:
        return RetryableError("standard output: its reader takes nothing now; the records wait", code=code)
    return RetryableError(f"standard output: {error.strerror}; the records wait and are tried again", code=code)


SINK = StdoutSink
