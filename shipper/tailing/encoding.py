"""The character encoding of a file: what the configuration says, or what the mark at the file's beginning says."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from shipper.tailing.bytes import Bytes

_BY_MARK = {"utf-16", "utf-32"}
#: Encodings in which no text begins like a mark of UTF-16 or UTF-32, so the mark is believed.
_NEVER_BEGIN_LIKE_A_MARK = {"utf-8", "utf-8-sig", "ascii"}


class Encoding(NamedTuple):
    """An encoding with its byte order, and how it writes a line feed."""

    name: str
    newline: bytes

    @property
    def width(self) -> int:
        """How many bytes a line feed has; every character has a multiple of that."""
        return len(self.newline)

    def end_of_lines(self, block: bytes, position: int) -> int:
        """Give where the last whole line of a block, which stands at ``position``, ends."""
        newline, width = self.newline, len(self.newline)
        if width == 1:
            return block.rfind(newline) + 1
        end = len(block)
        while (found := block.rfind(newline, 0, end)) >= 0:
            if (position + found) % width == 0:
                return found + width
            end = found + width - 1
        return 0

    def split(self, block: bytes, position: int) -> list[bytes]:
        """Split a block of whole lines, without their line feeds."""
        newline, width = self.newline, len(self.newline)
        if width == 1:
            lines = block.split(newline)
            lines.pop()
            return lines
        lines = []
        start = at = 0
        while (found := block.find(newline, at)) >= 0:
            at = found + 1
            if (position + found) % width == 0:
                lines.append(block[start:found])
                start = at = found + width
        return lines


class Encoded(Protocol):
    """A file whose encoding is asked for: a `shipper.tailing.tailedfile.TailedFile`."""

    data: Bytes
    encoding: Encoding | None


class TextEncoding:
    """Tells the encoding of each file. Raises LookupError for a name that is none."""

    def __init__(self, name: str) -> None:
        self._name = codecs.lookup(name).name
        self._newline = encode_newline(self._name)

    def of(self, file: Encoded) -> Encoding:
        """Give a file's encoding; it is remembered once the bytes that tell are there."""
        if file.encoding is not None:
            return file.encoding
        mark = file.data.read(0, 4)
        name = self._by(mark)
        encoding = Encoding(name, encode_newline(name))
        if len(mark) >= 4:
            file.encoding = encoding
        return encoding

    def _by(self, mark: bytes) -> str:
        if self._name in _NEVER_BEGIN_LIKE_A_MARK:
            for name, codec in (
                (codecs.BOM_UTF32_LE, "utf-32-le"),
                (codecs.BOM_UTF32_BE, "utf-32-be"),
                (codecs.BOM_UTF16_LE, "utf-16-le"),
                (codecs.BOM_UTF16_BE, "utf-16-be"),
            ):
                if mark.startswith(name):
                    return codec
            return self._name
        if self._name not in _BY_MARK:
            return self._name
        big = mark.startswith(codecs.BOM_UTF16_BE if self._name == "utf-16" else codecs.BOM_UTF32_BE)
        return self._name + ("-be" if big else "-le")


def encode_newline(encoding: str) -> bytes:
    """Give the bytes of a line feed, without a byte order mark. Raises LookupError for an unknown encoding."""
    return "\n".encode(encoding + "-le" if encoding in _BY_MARK else encoding)
