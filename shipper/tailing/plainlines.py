"""Lines of plain files as columns: text in some encoding, or CRI lines (``time stream P|F text``).

Ids: the hash is over the file's identity, its generation and the offset of the line's first byte. Plain lines have
no time of their own here; CRI lines have.
"""

from __future__ import annotations

import re
from datetime import datetime
from itertools import accumulate, chain
from typing import TYPE_CHECKING

from xxhash import xxh3_64_intdigest, xxh3_128_intdigest

from shipper.record import FAULT, Batch
from shipper.tailing.decoding import BATCH_RECORDS, Decoded, OnFault, ignore
from shipper.tailing.encoding import TextEncoding
from shipper.tailing.joiner import PART, PendingRecord
from shipper.tailing.traces import may_contain_lines, open_trace

if TYPE_CHECKING:
    from collections.abc import Callable

    from shipper.record import Resource
    from shipper.tailing.encoding import Encoding
    from shipper.tailing.joiner import Joiner
    from shipper.tailing.tailedfile import TailedFile

_CRI = re.compile(
    r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9})\d*)?(Z|[+-]\d\d:\d\d) (stdout|stderr) ([PF])(?::\S*)? ?(.*)",
    re.DOTALL,
)
#: Seconds since 1970 that are believed: what lies outside does not fit into the nanoseconds of an id or a sink.
_END_OF_TIME = 7_289_654_400
_FIRST_BYTES = 4096
_BACK_STEPS = 16
#: Programs that begin a file, or each of their runs, with a mark leave it at the beginning of a line.
_MARK = "\ufeff"


class PlainLines:
    """Decodes the lines of one log. ``resource`` gives the resource of a stream ("" for a plain line)."""

    def __init__(
        self,
        *,
        encoding: TextEncoding,
        parser: str,
        max_line: int,
        resource: Callable[[str], Resource],
        on_fault: OnFault = ignore,
    ) -> None:
        self._encoding = encoding
        self._parser = parser
        self._max_line = max_line
        self._resource = resource
        self._on_fault = on_fault

    def begin(self, file: TailedFile) -> None:
        """Find out whether the position is inside a line that was too long."""
        file.part = 0
        end = file.position
        if end in file.cuts:
            return
        for _ in range(_BACK_STEPS if self._encoding.of(file).width == 1 else 0):
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

    def decode(self, file: TailedFile, block: bytes, joiner: Joiner) -> Decoded:
        """Give a batch of the block's lines, or feed the joiner."""
        encoding = self._encoding.of(file)
        raw = encoding.split(block, file.position)
        size = len(block)
        if len(raw) > BATCH_RECORDS:
            raw = raw[:BATCH_RECORDS]
            size = sum(map(len, raw)) + len(raw) * encoding.width
            block = block[:size]
        texts: list[str] | None = None
        try:
            self._know_format(file, joiner)
            texts = self._texts(file, block, raw, encoding)
            if self._plain(file, block, raw, texts, joiner):
                return Decoded(self._batch(file, raw, texts, encoding), size)
        except Exception as error:  # noqa: BLE001 - whatever a line does, line by line it is that line's alone
            self._on_fault(file.path, error)
        self._feed(file, raw, texts, joiner)
        return Decoded(None, size)

    def feed_piece(self, file: TailedFile, piece: bytes, joiner: Joiner, *, last: bool) -> None:
        """Take part of a line that is too long, or a line without newline."""
        end = file.position + len(piece)
        mark = None
        if not last:
            file.part += 1
            mark = f"{file.part}/?"
        elif file.part:
            mark = f"{file.part + 1}/{file.part + 1}"
            file.part = 0
        try:
            self._know_format(file, joiner)
            text = piece.decode(self._encoding.of(file).name, "replace").removesuffix("\r" if last else "")
            self._line(file, text.removeprefix(_MARK), file.position, end=end, joiner=joiner, mark=mark)
        except Exception as error:  # noqa: BLE001 - it costs this line its form, and nothing else
            self._raw(file, piece, file.position, end=end, joiner=joiner, error=error)

    def _texts(self, file: TailedFile, block: bytes, raw: list[bytes], encoding: Encoding) -> list[str]:
        if encoding.name == "utf-8":
            text = block.decode("utf-8", "replace")
            # Asked of the text, which knows whether it has such characters at all; bytes would be searched.
            marked = _MARK in text
            texts = text.split("\n")
            texts.pop()
        else:
            texts = [line.decode(encoding.name, "replace") for line in raw]
            marked = encoding.width > 1 or file.position == 0
        if b"\r" in block:
            texts = [text.removesuffix("\r") for text in texts]
        if marked:
            texts = [text.removeprefix(_MARK) for text in texts]
        return texts

    def _plain(self, file: TailedFile, block: bytes, raw: list[bytes], texts: list[str], joiner: Joiner) -> bool:
        """Tell whether each line of a block is one record, with nothing to join, to skip or to split."""
        return not (
            joiner.holding
            or file.part
            or file.line_format == "cri"
            or joiner.rule == "fallback"
            or (b"\0" in block and self._encoding.of(file).width == 1)
            or max(map(len, raw)) > self._max_line
            or (joiner.rule is not None and may_contain_lines(texts))
        )

    def _batch(self, file: TailedFile, raw: list[bytes], texts: list[str], encoding: Encoding) -> Batch:
        width = encoding.width
        offsets = list(accumulate(chain((file.position,), (len(line) + width for line in raw))))
        offsets.pop()
        seed = self._seed(file)
        hashes = [xxh3_128_intdigest(b"%d" % offset, seed) for offset in offsets]
        number = len(raw)
        return Batch([0] * number, [0] * number, hashes, texts, [self._resource("")] * number, offsets)

    def _feed(self, file: TailedFile, raw: list[bytes], texts: list[str] | None, joiner: Joiner) -> None:
        """Feed the joiner line by line. Without ``texts`` each line is decoded for itself."""
        offset = file.position
        encoding = self._encoding.of(file)
        for number, line in enumerate(raw):
            end = offset + len(line) + encoding.width
            try:
                text = texts[number] if texts is not None else line.decode(encoding.name, "replace")
                self._feed_line(file, line, text, offset, end=end, encoding=encoding, joiner=joiner)
            except Exception as error:  # noqa: BLE001 - it costs this line its form, and nothing else
                self._raw(file, line, offset, end=end, joiner=joiner, error=error)
            file.part = 0
            offset = end

    def _feed_line(
        self, file: TailedFile, line: bytes, text: str, offset: int, *, end: int, encoding: Encoding, joiner: Joiner
    ) -> None:
        begin = offset
        if encoding.width == 1 and line[:1] == b"\0":
            stripped = line.lstrip(b"\0")
            begin = offset + len(line) - len(stripped)
            text = text.lstrip("\0")
            if not stripped:
                return
        if end - begin - encoding.width > self._max_line:
            self._long(file, line[begin - offset :], begin, encoding=encoding, joiner=joiner)
        elif file.part:
            part = f"{file.part + 1}/{file.part + 1}"
            self._line(file, text, begin, end=end, joiner=joiner, mark=part)
        else:
            self._line(file, text, begin, end=end, joiner=joiner)

    def _long(self, file: TailedFile, line: bytes, offset: int, *, encoding: Encoding, joiner: Joiner) -> None:
        pieces = []
        while len(line) > self._max_line:
            end = self._max_line
            while encoding.width == 1 and end > self._max_line - 3 and line[end] & 0xC0 == 0x80:
                end -= 1
            end -= end % encoding.width
            pieces.append(line[:end])
            line = line[end:]
        pieces.append(line)
        for number, piece in enumerate(pieces, file.part + 1):
            text = piece.decode(encoding.name, "replace")
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
            except (ValueError, OverflowError):
                whole_seconds = 0
            if not 0 < whole_seconds < _END_OF_TIME:
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

    def _raw(self, file: TailedFile, line: bytes, offset: int, *, end: int, joiner: Joiner, error: Exception) -> None:
        """Take a line that cannot be decoded or joined as it stands."""
        self._on_fault(file.path, error)
        record = PendingRecord(
            file,
            offset,
            time=0,
            stamp=0,
            digest=xxh3_128_intdigest(b"%d" % offset, self._seed(file)),
            raw=line.decode("utf-8", "replace"),
            resource=self._resource(""),
        )
        record.mark = {FAULT: type(error).__name__}
        joiner.feed_alone(record, end=end, stream="")

    def _seed(self, file: TailedFile) -> int:
        assert file.state is not None
        return xxh3_64_intdigest(f"{file.state.uid}:{file.state.generation}".encode())

    def _know_format(self, file: TailedFile, joiner: Joiner) -> None:
        if not file.line_format:
            file.line_format = self._find_format(file)
            joiner.rule = self._rule(file.line_format)

    def _find_format(self, file: TailedFile) -> str:
        first = file.data.read(0, _FIRST_BYTES).decode(self._encoding.of(file).name, "replace").partition("\n")[0]
        first = first.removeprefix(_MARK).lstrip("\0")
        if self._parser == "auto" and _CRI.match(first):
            return "cri"
        if self._parser == "fallback" or (self._parser == "auto" and open_trace(first, "fallback") is not None):
            return "fallback"
        return "plain"

    def _rule(self, line_format: str) -> str | None:
        if line_format == "fallback":
            return "fallback"
        return "trace" if self._parser == "auto" else None


def resources(attributes: dict[str, str], make: Callable[[dict[str, str]], Resource]) -> Callable[[str], Resource]:
    """Give a function that makes one resource per stream and remembers it."""
    known: dict[str, Resource] = {}

    def resource(stream: str) -> Resource:
        if stream not in known:
            known[stream] = make({**attributes, "log.iostream": stream} if stream else attributes)
        return known[stream]

    return resource
