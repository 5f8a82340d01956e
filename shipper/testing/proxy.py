"""A TCP proxy that breaks connections on demand, to see what a sink does about an unknown outcome.

It stands between a client and a real server::

    with FaultProxy(("127.0.0.1", 3306)) as proxy:
        connect("127.0.0.1", proxy.port)
        proxy.cut_when(lambda sent: b"COMMIT" in sent, answer="after")   # committed, but the client never hears
        ...
        assert proxy.cuts == 1

It listens on a free loopback port and may be switched at any time, also while connections are open.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Literal, Self

import msgspec

#: What the proxy does with connections; see `FaultProxy.switch`.
Mode = Literal["pass", "latency", "reset", "cut_upstream", "cut_answer", "refuse", "slow_close", "half_answer"]

_BLOCK = 65_536


#: Where `FaultProxy.cut_when` breaks a connection.
Cut = Literal["before", "half", "after"]


class _Rule(msgspec.Struct):
    predicate: Callable[[bytes], bool]
    cuts: list[Cut]


class FaultProxy:
    """A proxy to ``upstream``: (host, port), or the path of a Unix socket.

    ``port`` is where it listens; ``connections`` counts those accepted, ``cuts`` those broken on purpose.
    """

    def __init__(self, upstream: tuple[str, int] | str) -> None:
        self._upstream = upstream
        self._listener: socket.socket | None = None
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._mode: Mode = "pass"
        self._seconds = 0.0
        self._bytes = 0
        self._rule: _Rule | None = None
        self._open: set[_Pair] = set()
        self._threads: list[threading.Thread] = []
        self._was_cut = threading.Condition(self._lock)
        self.port = 0
        self.connections = 0
        self.cuts = 0
        self._listen()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def switch(self, mode: Mode, *, seconds: float = 0.0, after_bytes: int = 0) -> None:
        """Change what happens from now on, to open connections as well.

        ``pass``: forward. ``latency``: every block waits ``seconds`` in either direction. ``reset``: every
        connection, open or new, is reset. ``cut_upstream``: a connection is reset once ``after_bytes`` bytes of the
        client went upstream; the rest never does. ``cut_answer``: the request is forwarded and the connection reset
        when the answer comes. ``half_answer``: the same, after half of the answer's first block. ``refuse``: nothing
        listens, open connections stay. ``slow_close``: when the server closes, the client learns it ``seconds`` later.
        """
        with self._lock:
            self._mode, self._seconds, self._bytes = mode, seconds, after_bytes
            pairs = list(self._open)
            for pair in pairs:
                pair.sent = 0
        if mode == "refuse":
            self._stop_listening()
        else:
            self._listen()
        if mode == "reset":
            for pair in pairs:
                self._cut(pair)

    def cut_when(self, predicate: Callable[[bytes], bool], *, answer: Cut = "after", more: Sequence[Cut] = ()) -> None:
        """Break the connection whose client sends bytes that ``predicate`` accepts: once, and once for each of ``more``.

        ``predicate`` sees each block as it arrives. ``before``: the block is not forwarded, the server never sees the
        request. ``after``: it is forwarded and the connection is reset when the answer to it arrives, so that the
        server has done it and the client cannot know. ``half``: the same, after half of the answer's first block.
        """
        with self._lock:
            self._rule = _Rule(predicate, [answer, *more])

    def reset_all(self) -> None:
        """Reset every open connection once; new ones pass."""
        with self._lock:
            pairs = list(self._open)
        for pair in pairs:
            self._cut(pair)

    def wait_for_cuts(self, count: int, *, timeout: float = 10.0) -> None:
        """Return once ``count`` connections were broken. Raises TimeoutError after ``timeout`` seconds."""
        with self._lock:
            if not self._was_cut.wait_for(lambda: self.cuts >= count, timeout):
                raise TimeoutError(f"{self.cuts} of {count} connections were cut")

    def close(self) -> None:
        """Stop listening, reset what is open and end all threads."""
        self._stopping.set()
        self._stop_listening()
        with self._lock:
            pairs = list(self._open)
        for pair in pairs:
            pair.reset()
        for thread in self._threads:
            thread.join(10)

    def _listen(self) -> None:
        with self._lock:
            if self._listener is not None or self._stopping.is_set():
                return
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", self.port))
            listener.listen(64)
            self.port = listener.getsockname()[1]
            self._listener = listener
        self._start(self._accept, listener)

    def _stop_listening(self) -> None:
        with self._lock:
            listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes accept; close alone does not
            listener.close()

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True, name="fault-proxy")
        with self._lock:
            self._threads = [one for one in self._threads if one.is_alive()]
            self._threads.append(thread)
            thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            self.connections += 1
            try:
                server = self._connect()
            except OSError:
                _reset(client)
                continue
            pair = _Pair(client, server)
            with self._lock:
                self._open.add(pair)
                doomed = self._mode == "reset" or self._stopping.is_set()
            if doomed:
                self._cut(pair)
                continue
            self._start(self._upwards, pair)
            self._start(self._downwards, pair)

    def _connect(self) -> socket.socket:
        if isinstance(self._upstream, str):
            server = socket.socket(socket.AF_UNIX)
            try:
                server.connect(self._upstream)
            except OSError:
                server.close()
                raise
            return server
        return socket.create_connection(self._upstream, timeout=None)

    def _upwards(self, pair: _Pair) -> None:
        with contextlib.suppress(OSError):
            while data := pair.client.recv(_BLOCK):
                mode, seconds, limit = self._setting()
                if mode == "latency":
                    self._stopping.wait(seconds)
                with self._lock:
                    rule = self._rule
                    cut = rule.cuts.pop(0) if rule is not None and rule.cuts and rule.predicate(data) else None
                if cut == "before":
                    self._cut(pair)
                    return
                if cut or mode in {"cut_answer", "half_answer"}:
                    pair.doomed = True
                    pair.half = cut == "half" or mode == "half_answer"
                if mode == "cut_upstream" and pair.sent + len(data) >= limit:
                    pair.server.sendall(data[: limit - pair.sent])
                    self._cut(pair, gently=True)
                    return
                pair.sent += len(data)
                pair.server.sendall(data)
            pair.server.shutdown(socket.SHUT_WR)
        self._ended(pair)

    def _downwards(self, pair: _Pair) -> None:
        with contextlib.suppress(OSError):
            while data := pair.server.recv(_BLOCK):
                mode, seconds, _ = self._setting()
                if mode == "latency":
                    self._stopping.wait(seconds)
                if pair.doomed:
                    if pair.half:
                        pair.client.sendall(data[: len(data) // 2])
                        self._cut(pair, gently=True)
                    else:
                        self._cut(pair)
                    return
                pair.client.sendall(data)
            mode, seconds, _ = self._setting()
            if mode == "slow_close":
                self._stopping.wait(seconds)
            pair.client.shutdown(socket.SHUT_WR)
        self._ended(pair)

    def _setting(self) -> tuple[Mode, float, int]:
        with self._lock:
            return self._mode, self._seconds, self._bytes

    def _cut(self, pair: _Pair, *, gently: bool = False) -> None:
        pair.reset(gently=gently)
        with self._lock:
            self._open.discard(pair)
            self.cuts += 1
            self._was_cut.notify_all()

    def _ended(self, pair: _Pair) -> None:
        """Close both sides once both directions have ended."""
        with self._lock:
            pair.ended += 1
            if pair.ended < 2:
                return
            self._open.discard(pair)
        pair.client.close()
        pair.server.close()


class _Pair:
    """The two sides of one connection."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        self.sent = 0
        self.ended = 0
        self.doomed = False
        self.half = False

    def reset(self, *, gently: bool = False) -> None:
        """Break both sides. ``gently`` lets what was already sent arrive first, where a reset may discard it."""
        if gently:
            for side in (self.client, self.server):
                with contextlib.suppress(OSError):
                    side.shutdown(socket.SHUT_RDWR)
                side.close()
            return
        _reset(self.client)
        _reset(self.server)


def _reset(connection: socket.socket) -> None:
    """Close so that the peer gets RST, and wake a thread that reads it."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    # A receive blocked in another thread holds the socket open: only shutdown of the reading side wakes it, and that
    # sends nothing, so the close below is still a reset.
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RD)
    connection.close()
