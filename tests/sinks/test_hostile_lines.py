"""Lines that sinks write for people and terminals: what a log says forges none and steers nothing."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from shipper.record import Batch, Resource
from sinks import _render

RAW = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)
EVIL = "a\x1b]0;t\x07\x9b31m\x85\u202e\u2066\u200b\ufeff\u061c\r\x7f\n2026-11-22T12:00:00Z FATAL pay FORGED\u2028\udcff"


def batch(message: str, attributes: dict[str, Any], **resource: str) -> Batch:
    about = {key.replace("_", "."): value for key, value in resource.items()}
    return Batch(
        times=[0], stamps=[0], hashes=[1], raws=[message], resources=[Resource("app", about)], offsets=[0],
        severities=[9], messages=[message], attributes=[attributes],
    )  # fmt: skip


@pytest.mark.parametrize(
    "item",
    [
        batch(EVIL, {}),
        batch("m", {EVIL: 1}),
        batch("m", {"k": EVIL}),
        batch("m", {"k": {EVIL: [EVIL]}}),
        batch("m", {}, service_name=EVIL),
        batch("m", {}, container_name=EVIL),
    ],
)
def test_text_and_json_for_a_terminal(item: Batch) -> None:
    (line,) = _render.text_lines(item)
    text = line.decode()
    assert not RAW.search(text)
    first, *more = text.splitlines()
    assert first.startswith("1970-01-01T00:00:00.000000000Z INFO  ")
    assert all(further.startswith("    ") for further in more)
    (line,) = _render.terminal_json_lines(item)
    assert not RAW.search(line.decode())
    assert len(line.decode().splitlines()) == 1
    assert json.loads(line) == json.loads(_render.json_lines(item)[0])


def test_a_name_is_one_name() -> None:
    (line,) = _render.text_lines(batch("m", {'a=1 level="fatal" b': 2}))
    assert line.endswith(b" m a\\x3d1\\x20level\\x3d\\x22fatal\\x22\\x20b=2\n")
