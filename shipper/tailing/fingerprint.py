"""The hashes that tell which file some bytes are.

A file's *head* is the hash of its first bytes, its *marker* at an offset the hash of the up to 256 bytes before it.
Both are over uncompressed bytes, so a file keeps its identity when it is compressed. Hashes are xxh3_64; no bytes give 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xxhash import xxh3_64_intdigest

from shipper.tailing.archive import ArchiveBytes
from shipper.tailing.bytes import PlainBytes

if TYPE_CHECKING:
    from shipper.source import FileState
    from shipper.tailing.bytes import Bytes

#: Bytes of a file's beginning that its head hash covers, at most.
HEAD_BYTES = 1024
#: Bytes before an offset that its marker covers, at most.
MARKER_BYTES = 256
#: Bytes before the end of a line that tell it from others.
_BEFORE_END = 64


def digest(data: bytes) -> int:
    """Hash bytes for a head or a marker; no bytes give 0."""
    return xxh3_64_intdigest(data) if data else 0


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
    if isinstance(data, ArchiveBytes) and data.torn and len(before) < state.offset - start:
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
