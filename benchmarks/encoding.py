#!/usr/bin/env python3
"""Run the daemon once and tell the CPU seconds of its sink's encoding.

    encoding.py CONFIG

Encoding is all that the sink's `write` does but for HTTP: from a batch to the bytes of requests, compressed and signed,
and judging the answers. It is measured where it happens, in the delivery's thread, with all that goes on beside it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import yaml
from urllib3 import HTTPConnectionPool

from shipper import registry
from shipper.__main__ import main


class Meter:
    """CPU seconds of the threads that called one method."""

    def __init__(self, owner: type, name: str) -> None:
        self.seconds = 0.0
        setattr(owner, name, self._timed(getattr(owner, name)))

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **options: Any) -> Any:
            begin = time.thread_time()
            try:
                return method(*args, **options)
            finally:
                self.seconds += time.thread_time() - begin

        return timed


if __name__ == "__main__":
    with open(sys.argv[1]) as file:
        (section,) = yaml.safe_load(file)["sinks"].values()
    write, http = Meter(registry.sink(section["type"]), "write"), Meter(HTTPConnectionPool, "urlopen")
    try:
        sys.exit(main(["run", "--config", sys.argv[1], "--once"]))
    finally:
        print(f"{write.seconds - http.seconds:.3f} CPU seconds")
