"""The bytes of a packed file, inflated on demand, and how a packed file is told from a log.

What a file begins with decides, not its name: a packed file is never taken for text. Formats that cannot be read are
known as well, so that such a file is passed over and said.
"""

from __future__ import annotations

import errno
import os
import re
from abc import ABC, abstractmethod
from typing import Any, NamedTuple, cast

from shipper.tailing.bytes import PlainBytes

_READ = 256 * 1024
_CHUNK = 64 * 1024
_STEP = 16
#: Bytes at the beginning that tell the format; tar says what it is at 257.
_HEAD = 512
_TAR = b"ustar"
_TAR_AT = 257
#: Deflate packs at most this many bytes into one.
_MOST_RATIO = 1032
#: Memory that one archive may ask for to be inflated: what ``xz -9`` needs, and zstd without ``--ultra``.
_MOST_MEMORY = 80 << 20
_MOST_WINDOW = 8 << 20
#: A block of zstd says 128 KiB in four bytes, and its library gives all of them: little is given to it at a time.
_ZSTD_CHUNK = 512

_UNREADABLE = re.compile(
    rb"(?P<lz4>\x04\x22\x4d\x18)|(?P<compress>\x1f[\x9d\xa0])|(?P<zip>PK\x03\x04)|(?P<sevenzip>7z\xbc\xaf\x27\x1c)"
    rb"|(?P<lzop>\x89LZO\x00)|(?P<lzip>LZIP\x01)|(?P<snappy>\xff\x06\x00\x00sNaPpY)|(?P<zstd>[\x50-\x5f]\x2a\x4d\x18)"
    rb"|(?P<lzma>\x5d\x00\x00[\x00-\xff]{2}\xff)"
)
#: Names that packers give. The first four are read.
READABLE_SUFFIXES = (".gz", ".xz", ".bz2", ".zst")
SUFFIXES = (*READABLE_SUFFIXES, ".lz4", ".lzo", ".lz", ".lzma", ".Z", ".zip", ".7z", ".br", ".sz")


class UnreadableArchiveError(OSError):
    """A packed file in a format that cannot be read."""


class ArchiveBytes(ABC):
    """A packed file, inflated forward. Reading far backwards starts again at the beginning."""

    #: What each part of such a file begins with, and how many packed bytes are inflated at a time.
    magic = re.compile(b"")
    chunk = _CHUNK

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
        self._inflator: Any = None

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
        """Give the size that the archive should have had, as far as is known: at least what was inflated."""
        return self.size()

    def close(self) -> None:
        """See `Bytes.close`."""
        os.close(self.fd)

    @abstractmethod
    def new_inflator(self) -> Any:
        """Make what inflates: it has the methods and attributes of `bz2.BZ2Decompressor`."""

    @abstractmethod
    def errors(self) -> type[Exception] | tuple[type[Exception], ...]:
        """Give what the inflator raises for bytes that cannot be inflated."""

    def _rewind(self) -> None:
        self._inflator = self.new_inflator()
        self._raw = 0
        self._start, self._buffer, self._end = 0, b"", False

    def _inflate(self) -> bytes:
        while True:
            data = b""
            if self._inflator.eof:
                # Archives may be several, one behind the other.
                data = self._inflator.unused_data or self._packed()
                if not data or not self._begins(data):
                    # Padding, or bytes that are no archive: the packers ignore them as well.
                    break
                self._inflator = self.new_inflator()
            elif self._inflator.needs_input:
                data = self._packed()
                if not data:
                    self.torn = True
                    break
            try:
                more = self._inflator.decompress(data, _READ)
            except self.errors():
                if self._fault is None:
                    # Nothing of a chunk is given if there is a fault in it: once more, and in small steps at the fault.
                    self._fault = max(0, self._raw - self.chunk)
                    self._rewind()
                    return b""
                self.torn = self._corrupt = True
                break
            if more:
                return bytes(more)
        self._end = True
        return b""

    def _begins(self, data: bytes) -> bool:
        if len(data) < _STEP:
            data += os.pread(self.fd, _STEP, self._raw)
        return self.magic.match(data) is not None

    def _packed(self) -> bytes:
        count = self.chunk
        if self._fault is not None:
            count = min(count, self._fault - self._raw) if self._raw < self._fault else _STEP
        data = os.pread(self.fd, count, self._raw)
        self._raw += len(data)
        return data


class GzipBytes(ArchiveBytes):
    """A gzip archive."""

    magic = re.compile(rb"\x1f\x8b")

    def promised(self) -> int:
        """See `ArchiveBytes.promised`.

        A corrupt archive whose end is there says its size modulo 4 GiB in its last four bytes (RFC 1952).
        """
        size = self.size()
        if not self._corrupt:
            return size
        packed = os.fstat(self.fd).st_size
        said = int.from_bytes(os.pread(self.fd, 4, packed - 4), "little")
        return said if size < said <= packed * _MOST_RATIO else size

    def new_inflator(self) -> Any:
        """See `ArchiveBytes.new_inflator`."""
        from isal import igzip_lib  # noqa: PLC0415 - start-up time is a promise, and archives are rare

        return igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)

    def errors(self) -> type[Exception] | tuple[type[Exception], ...]:
        """See `ArchiveBytes.errors`."""
        from isal import igzip_lib  # noqa: PLC0415 - as above

        error: Any = igzip_lib.IsalError  # the stub calls the class an instance
        return cast("type[Exception]", error)


class XzBytes(ArchiveBytes):
    """An xz archive."""

    magic = re.compile(rb"\xfd7zXZ\x00")

    def new_inflator(self) -> Any:
        """See `ArchiveBytes.new_inflator`."""
        import lzma  # noqa: PLC0415 - start-up time is a promise, and archives are rare

        return lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_MOST_MEMORY)

    def errors(self) -> type[Exception] | tuple[type[Exception], ...]:
        """See `ArchiveBytes.errors`."""
        import lzma  # noqa: PLC0415 - as above

        return lzma.LZMAError


class Bzip2Bytes(ArchiveBytes):
    """A bzip2 archive."""

    magic = re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)")

    def new_inflator(self) -> Any:
        """See `ArchiveBytes.new_inflator`."""
        import bz2  # noqa: PLC0415 - start-up time is a promise, and archives are rare

        return bz2.BZ2Decompressor()

    def errors(self) -> type[Exception] | tuple[type[Exception], ...]:
        """See `ArchiveBytes.errors`."""
        return OSError, ValueError


class ZstdBytes(ArchiveBytes):
    """A zstd archive."""

    magic = re.compile(rb"\x28\xb5\x2f\xfd")
    chunk = _ZSTD_CHUNK

    def new_inflator(self) -> Any:
        """See `ArchiveBytes.new_inflator`."""
        return _ZstdInflator()

    def errors(self) -> type[Exception] | tuple[type[Exception], ...]:
        """See `ArchiveBytes.errors`."""
        import zstandard  # noqa: PLC0415 - start-up time is a promise, and archives are rare

        return zstandard.ZstdError


class _ZstdInflator:
    """One frame, by the methods of `bz2.BZ2Decompressor`."""

    def __init__(self) -> None:
        import zstandard  # noqa: PLC0415 - as above

        self._frame = zstandard.ZstdDecompressor(max_window_size=_MOST_WINDOW).decompressobj()

    needs_input = True

    @property
    def eof(self) -> bool:
        return self._frame.eof

    @property
    def unused_data(self) -> bytes:
        return self._frame.unused_data

    def decompress(self, data: bytes, _most: int) -> bytes:
        return self._frame.decompress(data)


_READABLE: dict[str, type[ArchiveBytes]] = {
    ".gz": GzipBytes,
    ".xz": XzBytes,
    ".bz2": Bzip2Bytes,
    ".zst": ZstdBytes,
}


class Format(NamedTuple):
    """What a file is: a log in plain text, or packed; ``unreadable`` names a format that cannot be read."""

    opener: type[ArchiveBytes | PlainBytes] = PlainBytes
    unreadable: str = ""


def format_of(head: bytes, path: str) -> Format:
    """Tell a file's format from its first bytes, or from its name where they say nothing."""
    for opener in _READABLE.values():
        if opener.magic.match(head):
            return Format(opener)
    match = _UNREADABLE.match(head)
    if match is not None:
        return Format(unreadable=str(match.lastgroup))
    if head[_TAR_AT : _TAR_AT + len(_TAR)] == _TAR:
        return Format(unreadable="tar")
    suffix = path[path.rfind(".") :]
    if suffix in _READABLE:
        return Format(_READABLE[suffix])
    return Format(unreadable=suffix[1:]) if suffix in SUFFIXES and head else Format()


def open_bytes(fd: int, path: str) -> ArchiveBytes | PlainBytes:
    """Give the bytes of a file that was opened; it closes the descriptor when it raises.

    Raises OSError, `UnreadableArchiveError` for a packed file that cannot be read.
    """
    try:
        opener, unreadable = format_of(os.pread(fd, _HEAD, 0), path)
        data = opener(fd)
        if isinstance(data, ArchiveBytes) and data.read(_TAR_AT, len(_TAR)) == _TAR:
            unreadable = "tar"
    except BaseException:
        os.close(fd)
        raise
    if unreadable:
        os.close(fd)
        raise UnreadableArchiveError(errno.EOPNOTSUPP, f"packed as {unreadable}, which cannot be read", path)
    return data
