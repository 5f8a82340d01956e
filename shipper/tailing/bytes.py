"""The bytes of one file, plain or gzipped, and the hashes that tell which file they are.

A file's *head* is the hash of its first bytes, its *marker* at an offset the hash of the up to 256 bytes before it.
Both are over uncompressed bytes, so a file keeps its identity when it is compressed. Hashes are xxh3_64; no bytes give 0.
"""

from __future__ import annotations

import errno
import os
import resource
from typing import TYPE_CHECKING, Protocol

from xxhash import xxh3_64_intdigest

if TYPE_CHECKING:
    from isal import igzip_lib

    from shipper.source import FileState

#: Bytes of a file's beginning that its head hash covers, at most.
HEAD_BYTES = 1024
#: Bytes before an offset that its marker covers, at most.
MARKER_BYTES = 256
#: Bytes before the end of a line that tell it from others.
_BEFORE_END = 64

_GZIP_READ = 256 * 1024
_GZIP_CHUNK = 64 * 1024
_GZIP_STEP = 16
_GZIP_MAGIC = b"\x1f\x8b"
#: Deflate packs at most this many bytes into one.
_MOST_RATIO = 1032


def digest(data: bytes) -> int:
    """Hash bytes for a head or a marker; no bytes give 0."""
    return xxh3_64_intdigest(data) if data else 0


#: Descriptors left for everything that is no log: the state, sinks, HTTP, directories; a quarter when few are allowed.
SPARE_DESCRIPTORS = 64


def open_log(path: str) -> int:
    """Open a log for reading; give its descriptor.

    Raises OSError, with EMFILE already when only `SPARE_DESCRIPTORS` are left: a file more must not cost the daemon
    its state and its sinks. The system gives the lowest free number, so the number tells how many are in use.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit != resource.RLIM_INFINITY and fd >= limit - min(SPARE_DESCRIPTORS, limit // 4):
        os.close(fd)
        raise OSError(errno.EMFILE, f"only {limit} files may be open; raise LimitNOFILE= or ulimit -n", path)
    return fd


class Bytes(Protocol):
    """Random access to a file's uncompressed bytes. Errors are OSError and EOFError (a torn archive)."""

    device: int
    inode: int
    fd: int

    @property
    def identity(self) -> tuple[int, int]:
        """Device and inode."""

    def size(self) -> int:
        """Give the size in bytes as far as it is known; for an archive, what was inflated so far."""

    def read(self, position: int, count: int) -> bytes:
        """Read up to ``count`` bytes; fewer only at the end."""

    def close(self) -> None:
        """Close the descriptor."""


class PlainBytes:
    """A file read with pread. The descriptor's own position is only used to ask for the size."""

    def __init__(self, fd: int) -> None:
        status = os.fstat(fd)
        self.device = status.st_dev
        self.inode = status.st_ino
        self.fd = fd

    @property
    def identity(self) -> tuple[int, int]:
        """See `Bytes.identity`."""
        return self.device, self.inode

    def size(self) -> int:
        """See `Bytes.size`. lseek costs a third of fstat, which counts for 500 idle files."""
        return os.lseek(self.fd, 0, os.SEEK_END)

    def read(self, position: int, count: int) -> bytes:
        """See `Bytes.read`."""
        return os.pread(self.fd, count, position)

    def data_after(self, position: int) -> int:
        """Give where bytes begin at or after a position inside a hole; the size when none follow."""
        try:
            return os.lseek(self.fd, position, os.SEEK_DATA)
        except OSError:
            return self.size()

    def close(self) -> None:
        """See `Bytes.close`."""
        os.close(self.fd)


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


def marker_at(data: Bytes, offset: int) -> int:
    """Hash the up to 256 bytes before an offset."""
    start = max(0, offset - MARKER_BYTES)
    return digest(data.read(start, offset - start)) if offset else 0


def matches(state: FileState, data: Bytes) -> bool:
    """Tell whether these bytes are the generation that a state describes.

    The head must agree and so must the bytes before the offset, because heads alone repeat (a banner) and inodes
    are reused. A file smaller than it once was is another one, so an offset past the end never matches. A file that
    was empty when last seen is known by its inode, and so is an archive that is torn before the offset.
    """
    if state.head_size == 0:
        return state.offset == 0 and (data.device, data.inode) == (state.device, state.inode)
    if isinstance(data, PlainBytes) and data.size() < state.size:
        return False
    head = data.read(0, state.head_size)
    if len(head) != state.head_size or digest(head) != state.head:
        return False
    if state.offset == 0:
        return True
    start = max(0, state.offset - MARKER_BYTES)
    before = data.read(start, state.offset - start)
    if isinstance(data, GzipBytes) and data.torn and len(before) < state.offset - start:
        return data.identity == (state.device, state.inode)
    return len(before) == state.offset - start and digest(before) == state.marker


def copies(copy: Bytes, original: Bytes) -> bool:
    """Tell whether ``copy`` holds the same bytes as ``original``, as far as both go: in progress, or a finished archive.

    Judged by the head and by the bytes before the last end of a line that both have. Bytes inside a line prove nothing:
    the kernel shows the first pages of a large write before the rest, and long lines may look alike there.
    """
    head = original.read(0, HEAD_BYTES)
    other = copy.read(0, HEAD_BYTES)
    common = min(len(head), len(other))
    if common == 0 or head[:common] != other[:common]:
        return False
    end = original.size()
    if len(copy.read(max(0, end - MARKER_BYTES), MARKER_BYTES)) < min(end, MARKER_BYTES):
        end = copy.size()
    size = MARKER_BYTES
    while True:
        start = max(0, end - size)
        last = original.read(start, end - start)
        if copy.read(start, end - start) != last:
            return False
        if last.rfind(b"\n") >= _BEFORE_END:
            return True
        if start == 0:
            return b"\n" in last or original.size() == copy.size()
        size *= 16
