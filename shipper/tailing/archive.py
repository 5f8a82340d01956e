"""The bytes of a gzip archive, inflated on demand."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from isal import igzip_lib

_GZIP_READ = 256 * 1024
_GZIP_CHUNK = 64 * 1024
_GZIP_STEP = 16
_GZIP_MAGIC = b"\x1f\x8b"
#: Deflate packs at most this many bytes into one.
_MOST_RATIO = 1032


class GzipBytes:
    """A gzip archive, inflated forward. Reading far backwards starts again at the beginning."""

    def __init__(self, fd: int) -> None:
        status = os.fstat(fd)
        self.device = status.st_dev
        self.inode = status.st_ino
        self.fd = fd
        self.torn = False
        self._start = 0
        self._fault: int | None = None  # in the packed bytes: where a chunk began that could not be inflated
        self._corrupt = False
        self._buffer = b""
        self._end = False
        self._raw = 0
        self._inflator: igzip_lib.IgzipDecompressor | None = None

    @property
    def identity(self) -> tuple[int, int]:
        """See `Bytes.identity`."""
        return self.device, self.inode

    def size(self) -> int:
        """See `Bytes.size`."""
        return self._start + len(self._buffer)

    @property
    def ended(self) -> bool:
        """Whether everything was inflated."""
        return self._end

    def read(self, position: int, count: int) -> bytes:
        """See `Bytes.read`. A torn archive gives what can be inflated and sets ``torn``."""
        if position < self._start or self._inflator is None:
            self._rewind()
        while not self._end and self._start + len(self._buffer) < position + count:
            more = self._inflate()
            keep = max(0, min(position, self._start + len(self._buffer)) - 65536 - self._start)
            self._buffer = self._buffer[keep:] + more
            self._start += keep
        offset = position - self._start
        return self._buffer[offset : offset + count]

    def grown(self) -> bool:
        """Tell whether a torn archive has more bytes now; then it can be read on."""
        if not self.torn or self._corrupt or os.fstat(self.fd).st_size <= self._raw:
            return False
        self._inflator, self.torn, self._end = None, False, False
        return True

    def promised(self) -> int:
        """Give the size that the archive should have had, as far as is known: at least what was inflated.

        A corrupt archive whose end is there says its size modulo 4 GiB in its last four bytes (RFC 1952).
        """
        size = self.size()
        if not self._corrupt:
            return size
        packed = os.fstat(self.fd).st_size
        said = int.from_bytes(os.pread(self.fd, 4, packed - 4), "little")
        return said if size < said <= packed * _MOST_RATIO else size

    def close(self) -> None:
        """See `Bytes.close`."""
        os.close(self.fd)

    def _rewind(self) -> None:
        self._inflator = self._new()
        self._raw = 0
        self._start, self._buffer, self._end = 0, b"", False

    @staticmethod
    def _new() -> igzip_lib.IgzipDecompressor:
        from isal import igzip_lib  # noqa: PLC0415 - start-up time is a promise, and archives are rare

        return igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)

    def _inflate(self) -> bytes:
        from isal import igzip_lib  # noqa: PLC0415 - as above

        inflator = self._inflator
        assert inflator is not None
        try:
            while True:
                data = b""
                if inflator.eof:
                    # Archives may be several, one behind the other.
                    data = inflator.unused_data or self._packed()
                    if data[:2] != _GZIP_MAGIC[: len(data)] or not data:
                        # Padding, or bytes that are no archive: gzip ignores them as well.
                        break
                    inflator = self._inflator = self._new()
                elif inflator.needs_input:
                    data = self._packed()
                    if not data:
                        self.torn = True
                        break
                more = inflator.decompress(data, _GZIP_READ)
                if more:
                    return bytes(more)
        except igzip_lib.IsalError:  # type: ignore[misc]  # the stub calls the class an instance
            if self._fault is None:
                # Nothing of a chunk is given if there is a fault in it: once more, and in small steps at the fault.
                self._fault = max(0, self._raw - _GZIP_CHUNK)
                self._rewind()
                return b""
            self.torn = self._corrupt = True
        self._end = True
        return b""

    def _packed(self) -> bytes:
        count = _GZIP_CHUNK
        if self._fault is not None:
            count = min(count, self._fault - self._raw) if self._raw < self._fault else _GZIP_STEP
        data = os.pread(self.fd, count, self._raw)
        self._raw += len(data)
        return data
