"""A container's log written as Docker's json-file driver writes it: partial lines, rotation, compression, removal."""

from __future__ import annotations

import gzip
import json
import shutil
import struct
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Docker's buffer per stream; a longer line becomes several entries.
FRAGMENT_BYTES = 16384


def docker_time(time_ns: int) -> str:
    """Write a time as Docker does: RFC 3339 in UTC, trailing zeros of the fraction trimmed."""
    second = datetime.fromtimestamp(time_ns // 1_000_000_000, tz=UTC)
    fraction = f"{time_ns % 1_000_000_000:09d}".rstrip("0")
    return f"{second:%Y-%m-%dT%H:%M:%S}{'.' + fraction if fraction else ''}Z"


class DockerLog:
    """One container directory. ``max_file`` counts the live file; 1 unlinks at rotation, as Docker does."""

    def __init__(
        self,
        root: Path,
        identifier: str = "",
        *,
        name: str = "api",
        image: str = "faildaily/api:1",
        labels: dict[str, str] | None = None,
        tty: bool = False,
        max_size: int = 0,
        max_file: int = 1,
        compress: bool = False,
        attrs: dict[str, str] | None = None,
        config: bool = True,
    ) -> None:
        self.id = identifier or name.encode().hex().ljust(64, "0")[:64]
        self.directory = root / self.id
        self.path = self.directory / f"{self.id}-json.log"
        self.name, self.image, self.labels, self.tty = name, image, labels or {}, tty
        self.max_size, self.max_file, self.compress, self.attrs = max_size, max_file, compress, attrs
        self.clock_ns = time.time_ns()
        self.rotations = 0
        self.directory.mkdir(parents=True)
        if config:
            self.configure()
        self._file = self.path.open("ab", buffering=0)

    def configure(self, *, running: bool = True, name: str | None = None) -> None:
        """Write config.v2.json by rename, as at every change of a container's state."""
        self.name = name or self.name
        content = {
            "ID": self.id,
            "Name": f"/{self.name}",
            "State": {"Running": running},
            "Config": {"Image": self.image, "Labels": self.labels, "Tty": self.tty, "Env": ["SECRET=hunter2"]},
        }
        temporary = self.directory / ".tmp-config.v2.json"
        temporary.write_text(json.dumps(content))
        temporary.replace(self.directory / "config.v2.json")

    def write(self, text: str, stream: str = "stdout", *, time_ns: int | None = None, newline: bool = True) -> None:
        """Write one line of the application; ``newline=False`` is output that ended without one."""
        stamp = self.tick() if time_ns is None else time_ns
        for fragment in self.fragments(text + (("\r\n" if self.tty else "\n") if newline else "")):
            self.entry(fragment, stream, stamp)

    def entry(self, text: str, stream: str, time_ns: int) -> None:
        """Write one entry as it is, rotating before it when the file is full."""
        if self.max_size and self._file.tell() >= self.max_size:
            self.rotate()
        entry: dict[str, Any] = {"log": text, "stream": stream}
        if self.attrs:
            entry["attrs"] = self.attrs
        entry["time"] = docker_time(time_ns)
        encoded = json.dumps(entry, separators=(",", ":"), ensure_ascii=False)
        self._file.write(encoded.replace("<", "\\u003c").encode() + b"\n")

    def raw(self, data: bytes) -> None:
        """Write bytes as they are."""
        self._file.write(data)

    def tick(self, nanoseconds: int = 1_000) -> int:
        """Move the container's clock on and tell it."""
        self.clock_ns += nanoseconds
        return self.clock_ns

    @staticmethod
    def fragments(text: str) -> Iterator[str]:
        """Cut output as Docker's copier does, at 16 KiB of bytes."""
        data = text.encode()
        while data:
            newline = data.find(b"\n", 0, FRAGMENT_BYTES)
            end = newline + 1 if newline >= 0 else FRAGMENT_BYTES
            yield data[:end].decode("utf-8", "replace")
            data = data[end:]

    def rotate(self) -> None:
        """Rotate now: unlink for one file, else rename up the chain, then open a new file."""
        self.rotations += 1
        self._file.close()
        ending = ".gz" if self.compress else ""
        if self.max_file <= 1:
            self.path.unlink()
        else:
            self._numbered(self.max_file - 1, ending).unlink(missing_ok=True)
            for number in range(self.max_file - 1, 1, -1):
                source = self._numbered(number - 1, ending)
                if source.exists():
                    source.rename(self._numbered(number, ending))
            self.path.rename(self._numbered(1))
        self._file = self.path.open("wb", buffering=0)
        if self.compress and self.max_file > 1:
            self.archive(1)

    def archive(self, number: int, *, finish: bool = True) -> None:
        """Compress a rotated file in place, as Docker's goroutine does; without ``finish`` leave it half written."""
        source, target = self._numbered(number), self._numbered(number, ".gz")
        content = source.read_bytes()
        extra = json.dumps({"lastTime": docker_time(self.clock_ns)}).encode()
        packed = gzip.compress(content, mtime=0)
        header = packed[:3] + bytes([packed[3] | 4]) + packed[4:10] + struct.pack("<H", len(extra)) + extra
        whole = header + packed[10:]
        target.write_bytes(whole if finish else whole[: len(whole) // 2])
        if finish:
            source.unlink()

    def close(self) -> None:
        """Close the file, as when the container stops."""
        self._file.close()

    def remove(self) -> None:
        """Remove the directory, as `docker rm` does."""
        self._file.close()
        shutil.rmtree(self.directory)

    def _numbered(self, number: int, ending: str = "") -> Path:
        return self.path.with_name(f"{self.path.name}.{number}{ending}")
