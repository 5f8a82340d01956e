"""moto (https://github.com/getmoto/moto), the emulator of AWS, as a process of its own that others stand in front of."""

from __future__ import annotations

import subprocess
import sys
from types import TracebackType
from typing import Self

import urllib3

from shipper.testing.http_server import Request
from support.process import first_line, start_module


class Moto:
    """moto's server as a process of its own; it ends when this process does."""

    def __init__(self) -> None:
        self._process = start_module("moto_server", stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.url = first_line(self._process)
        if not self.url:
            self.close()
            raise RuntimeError("moto did not start; pip install 'moto[server]'")
        self._pool = urllib3.PoolManager(maxsize=1, retries=False, timeout=60)

    def ask(self, request: Request, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Pass a request on; status, headers by lower-case name, body."""
        passed = ("authorization", "content-type", "x-amz-target", "x-amz-date", "x-amz-security-token")
        headers = {name: request.headers[name] for name in passed if name in request.headers}
        answer = self._pool.request(request.method, self.url + request.path, body=body, headers=headers)
        return answer.status, {name.lower(): value for name, value in answer.headers.items()}, answer.data

    def reset(self) -> None:
        """Forget everything."""
        self._pool.request("POST", self.url + "/moto-api/reset")

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()
        if hasattr(self, "_pool"):
            self._pool.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def main() -> None:
    """Serve until standard input ends, as it does when whoever started us is gone."""
    from moto.server import ThreadedMotoServer  # noqa: PLC0415 - 80 MiB that the proxy does not need

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    print(f"http://{host}:{port}", flush=True)  # noqa: T201 - what our process was started for
    sys.stdin.read()
    server.stop()


if __name__ == "__main__":
    main()
