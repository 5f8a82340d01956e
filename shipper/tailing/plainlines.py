"""Lines of plain files as columns: text in some encoding, or CRI lines (``time stream P|F text``).

Ids: the hash is over the file's identity, its generation and the offset of the line's first byte. Plain lines have
no time of their own here; CRI lines have.
"""

from __future__ import annotations

import codecs
import re
from datetime import datetime
from itertools import accumulate, chain
from typing import TYPE_CHECKING

from xxhash import xxh3_64_intdigest, xxh3_128_intdigest

from shipper.record import Batch
from shipper.tailing.joiner import PART, PendingRecord
from shipper.tailing.traces import may_contain_lines, open_trace

if TYPE_CHECKING:
    from collections.abc import Callable

    from shipper.record import Resource
    from shipper.tailing.bytes import Bytes
    from shipper.tailing.joiner import Joiner
    from shipper.tailing.tailedfile import TailedFile

_CRI = re.compile(
    r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9})\d*)?(Z|[+-]\d\d:\d\d) (stdout|stderr) ([PF])(?::\S*)? ?(.*)",
    re.DOTALL,
)
_FIRST_BYTES = 4096
_BACK_STEPS = 16


class PlainLines:
    """Decodes the lines of one log. ``resource`` gives the resource of a stream ("" for a plain line)."""

    def __init__(self, *, encoding: str, parser: str, max_line: int, resource: Callable[[str], Resource]) -> None:
        self._encoding = codecs.lookup(encoding).name
        self._parser = parser
        self._max_line = max_line
        self._resource = resource
        self.width = len(encode_newline(self._encoding))

    def begin(self, file: TailedFile) -> None:
        """Find out whether the position is inside a line that was too long."""
        file.part = 0
        end = file.position
        if end in file.cuts:
            return
        for _ in range(_BACK_STEPS if self.width == 1 else 0):
            if not end:
                break
            start = max(0, end - self._max_line)
            newline = file.data.read(start, end - start).rfind(b"\n")
            newline = max(newline, max((cut - start - 1 for cut in file.cuts if start < cut < end), default=-1))
            if newline >= 0 or not start:
                begin = start + newline + 1 if newline >= 0 else 0
                file.part = -(-(file.position - begin) // self._max_line)
                break
            end = start

    def decode(self, file: TailedFile, block: bytes, joiner: Joiner) -> Batch | None:
        """Give a batch of the block's lines, or feed the joiner and give None."""
        self._know_format(file, joiner)
        encoding = self._concrete(file.data)
        raw = self.split(file, block)
        if self.width == 1 and encoding == "utf-8":
            texts = block.decode("utf-8", "replace").split("\n")
            texts.pop()
        else:
            texts = [line.decode(encoding, "replace") for line in raw]
        if b"\r" in block:
            texts = [text.removesuffix("\r") for text in texts]
        if file.position == 0:
            texts[0] = texts[0].removeprefix("\ufeff")
        if (
            joiner.holding
            or file.part
            or file.line_format == "cri"
            or joiner.rule == "fallback"
            or (self.width == 1 and b"\0" in block)
            or max(map(len, raw)) > self._max_line
            or (joiner.rule is not None and may_contain_lines(texts))
        ):
            self._feed(file, raw, texts, joiner)
            return None
        width = self.width
        offsets = list(accumulate(chain((file.position,), (len(line) + width for line in raw))))
        offsets.pop()
        seed = self._seed(file)
        hashes = [xxh3_128_intdigest(b"%d" % offset, seed) for offset in offsets]
        number = len(raw)
        return Batch([0] * number, [0] * number, hashes, texts, [self._resource("")] * number, offsets)

    def feed_piece(self, file: TailedFile, piece: bytes, joiner: Joiner, *, last: bool) -> None:
        """Take part of a line that is too long, or a line without newline."""
        self._know_format(file, joiner)
        text = piece.decode(self._concrete(file.data), "replace").removesuffix("\r" if last else "")
        if file.position == 0:
            text = text.removeprefix("\ufeff")
        mark = None
        if not last:
            file.part += 1
            mark = f"{file.part}/?"
        elif file.part:
            mark = f"{file.part + 1}/{file.part + 1}"
            file.part = 0
        self._line(file, text, file.position, end=file.position + len(piece), joiner=joiner, mark=mark)

    def end_of_lines(self, file: TailedFile, block: bytes) -> int:
        """Give where the last whole line of a block at the file's position ends."""
        if self.width == 1:
            return block.rfind(b"\n") + 1
        newline = encode_newline(self._concrete(file.data))
        end = len(block)
        while (found := block.rfind(newline, 0, end)) >= 0:
            if (file.position + found) % self.width == 0:
                return found + self.width
            end = found + self.width - 1
        return 0

    def split(self, file: TailedFile, block: bytes) -> list[bytes]:
        """Split whole lines, without their newlines."""
        if self.width == 1:
            raw = block.split(b"\n")
            raw.pop()
            return raw
        newline = encode_newline(self._concrete(file.data))
        raw = []
        start = at = 0
        while (found := block.find(newline, at)) >= 0:
            at = found + 1
            if (file.position + found) % self.width == 0:
                raw.append(block[start:found])
                start = at = found + self.width
        return raw

    def _feed(self, file: TailedFile, raw: list[bytes], texts: list[str], joiner: Joiner) -> None:
        offset = file.position
        encoding = self._concrete(file.data)
        for line, whole_text in zip(raw, texts, strict=True):
            end = offset + len(line) + self.width
            text = whole_text
            begin = offset
            if self.width == 1 and line[:1] == b"\0":
                stripped = line.lstrip(b"\0")
                begin = offset + len(line) - len(stripped)
                text = text.lstrip("\0")
                if not stripped:
                    offset = end
                    continue
            if end - begin - self.width > self._max_line:
                self._long(file, line[begin - offset :], begin, encoding=encoding, joiner=joiner)
            elif file.part:
                part = f"{file.part + 1}/{file.part + 1}"
                self._line(file, text, begin, end=end, joiner=joiner, mark=part)
            else:
                self._line(file, text, begin, end=end, joiner=joiner)
            file.part = 0
            offset = end

    def _long(self, file: TailedFile, line: bytes, offset: int, *, encoding: str, joiner: Joiner) -> None:
        pieces = []
        while len(line) > self._max_line:
            end = self._max_line
            while self.width == 1 and end > self._max_line - 3 and line[end] & 0xC0 == 0x80:
                end -= 1
            end -= end % self.width
            pieces.append(line[:end])
            line = line[end:]
        pieces.append(line)
        for number, piece in enumerate(pieces, file.part + 1):
            text = piece.decode(encoding, "replace")
            if number == len(pieces) + file.part:
                text = text.removesuffix("\r")
            mark = f"{number}/{len(pieces) + file.part}"
            self._line(file, text, offset, end=offset + len(piece), joiner=joiner, mark=mark)
            offset += len(piece)

    def _line(
        self, file: TailedFile, text: str, offset: int, *, end: int, joiner: Joiner, mark: str | None = None
    ) -> None:
        stamp, stream, whole = 0, "", True
        if file.line_format == "cri" and (match := _CRI.match(text)):
            second, fraction, zone, stream, flag, text = match.groups()
            try:
                whole_seconds = int(datetime.fromisoformat(second + zone.replace("Z", "+00:00")).timestamp())
            except ValueError:
                whole_seconds = 0
            stamp = whole_seconds * 1_000_000_000 + int((fraction or "").ljust(9, "0")) if whole_seconds else 0
            whole = flag == "F"
        record = PendingRecord(
            file,
            offset,
            time=stamp,
            stamp=stamp,
            digest=xxh3_128_intdigest(b"%d" % offset, self._seed(file)),
            raw=text,
            resource=self._resource(stream),
        )
        if mark is not None:
            record.mark = {PART: mark}
        joiner.feed(record, end=end, stream=stream, whole=whole)

    def _seed(self, file: TailedFile) -> int:
        assert file.state is not None
        return xxh3_64_intdigest(f"{file.state.uid}:{file.state.generation}".encode())

    def _know_format(self, file: TailedFile, joiner: Joiner) -> None:
        if not file.line_format:
            file.line_format = self._find_format(file.data)
            joiner.rule = self._rule(file.line_format)

    def _find_format(self, data: Bytes) -> str:
        first = data.read(0, _FIRST_BYTES).decode(self._concrete(data), "replace").partition("\n")[0]
        first = first.removeprefix("\ufeff").lstrip("\0")
        if self._parser == "auto" and _CRI.match(first):
            return "cri"
        if self._parser == "fallback" or (self._parser == "auto" and open_trace(first, "fallback") is not None):
            return "fallback"
        return "plain"

    def _rule(self, line_format: str) -> str | None:
        if line_format == "fallback":
            return "fallback"
        return "trace" if self._parser == "auto" else None

    def _concrete(self, data: Bytes) -> str:
        """Give the encoding with its byte order, which a mark at the file's beginning tells."""
        if self.width == 1 or self._encoding not in {"utf-16", "utf-32"}:
            return self._encoding
        mark = data.read(0, self.width)
        big = mark == (codecs.BOM_UTF16_BE if self.width == 2 else codecs.BOM_UTF32_BE)
        return self._encoding + ("-be" if big else "-le")


def encode_newline(encoding: str) -> bytes:
    """Give the bytes of a newline, without a byte order mark. Raises LookupError for an unknown encoding."""
    return "\n".encode(encoding + "-le" if encoding in {"utf-16", "utf-32"} else encoding)


def resources(attributes: dict[str, str], make: Callable[[dict[str, str]], Resource]) -> Callable[[str], Resource]:
    """Give a function that makes one resource per stream and remembers it."""
    known: dict[str, Resource] = {}

    def resource(stream: str) -> Resource:
        if stream not in known:
            known[stream] = make({**attributes, "log.iostream": stream} if stream else attributes)
        return known[stream]

    return resource
