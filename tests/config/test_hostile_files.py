"""A file may hold anything: it is refused soon, in little memory, with the line, and no secret of it is told."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import pytest

from shipper.config import loader
from shipper.config.document import MAX_PROBLEMS
from shipper.config.loader import load, loads
from shipper.errors import ConfigError

GOOD = "sources: {tape: {type: tape}}\nsinks: {vault: {type: vault, host: a}}\n"


def bomb(levels: int, wide: int = 9) -> str:
    lines = ["x-0: &a0 [" + ",".join(["lol"] * wide) + "]"]
    lines += [f"x-{n}: &a{n} [{','.join([f'*a{n - 1}'] * wide)}]" for n in range(1, levels)]
    return "\n".join(lines) + "\n" + GOOD


def merge_bomb(levels: int, wide: int = 30) -> str:
    lines = ["x-0: &a0 {" + ",".join(f"k{n}: [1,2,3,4,5,6,7,8]" for n in range(wide)) + "}"]
    lines += [
        f"x-{n}: &a{n} {{{','.join(f'm{n}x{i}: {{<<: *a{n - 1}}}' for i in range(wide))}}}" for n in range(1, levels)
    ]
    return "\n".join(lines) + "\n" + GOOD


HOSTILE = {
    "alias bomb": (bomb(10), "E-CFG-YAML shipper.yaml:5:15 more than 20000 values"),
    "merge bomb": (merge_bomb(6), "more than 20000 values"),
    "wide": (GOOD + "x-a: [" + "1," * 200_000 + "]\n", "E-CFG-YAML shipper.yaml:3:39973 more than 20000 values"),
    "wide with long keys": (
        GOOD + "x-a: {" + ",".join(f"k{n}: v" for n in range(60_000)) + "}\n",
        "more than 20000 values",
    ),
    "deep flow mappings": (
        GOOD + "transforms: " + "{a: " * 800 + "1" + "}" * 800 + "\n",
        "E-CFG-YAML shipper.yaml:3:137 nested more than 32 deep",
    ),
    "deeper flow sequences": (GOOD + "x-a: " + "[" * 500_000, "maximum nesting depth"),
    "deep blocks": (GOOD + "x-a:\n" + "".join(" " * n + "a:\n" for n in range(1, 200)), "nested more than 32 deep"),
    "deep by aliases": (
        "x-0: &a0 [1]\n" + "".join(f"x-{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 60)) + GOOD,
        "E-CFG-YAML shipper.yaml:31:13 nested more than 32 deep by this alias",
    ),
    "anchor in itself": (GOOD + "x-a: &a {b: [*a]}\n", "E-CFG-YAML shipper.yaml:3:6 this YAML anchor contains itself"),
    "many unknown keys": (GOOD + "".join(f"key{n}: 1\n" for n in range(9_000)), "there are more; mend these first"),
    "long unknown key": (GOOD + "k" * 600 + ": 1\n", "E-CFG-KEY shipper.yaml:3:1 unknown key 'kkk"),
    "too long a key": (GOOD + "? " + "k" * 200_000 + "\n: 1\n", "E-CFG-YAML shipper.yaml:3:3 this key is no word"),
    "twice again and again": (GOOD + "x-a: {" + "b: 1, " * 9_000 + "}\n", "there are more; mend these first"),
    "object of Python": (
        GOOD + 'x-a: !!python/object/apply:os.system ["true"]\n',
        "E-CFG-YAML shipper.yaml:3:6 unknown YAML tag",
    ),
    "binary tag": (GOOD + "x-a: !!binary aGk=\n", "E-CFG-YAML shipper.yaml:3:6 unknown YAML tag"),
    "set tag": (GOOD + "x-a: !!set {a}\n", "E-CFG-YAML shipper.yaml:3:6 unknown YAML tag"),
    "huge hexadecimal": (
        GOOD + "shutdown_timeout: 0x" + "f" * 100_000 + "\n",
        "E-CFG-TYPE shipper.yaml:3:19 shutdown_timeout: expected a duration",
    ),
    "huge decimal": (
        GOOD.replace("host: a", "host: a, port: " + "9" * 100_000),
        "E-CFG-TYPE shipper.yaml:2:45 sinks.vault.port: expected a whole number from 1 to 65535, such as 3306, got '999",
    ),
    "endless duration": (
        GOOD + "shutdown_timeout: 1e999\n",
        "E-CFG-TYPE shipper.yaml:3:19 shutdown_timeout: expected a",
    ),
    "duration of ages": (
        GOOD.replace("host: a", "host: a, timeout: " + "9" * 400 + "d"),
        "E-CFG-TYPE shipper.yaml:2:48 sinks.vault.timeout: expected a duration, such as 30s, got '999",
    ),
    "size beyond all": (
        GOOD.replace("host: a", "host: a, buffer: {max_size: " + "9" * 400 + "TiB}"),
        "E-CFG-TYPE shipper.yaml:2:58 sinks.vault.buffer.max_size: expected a size, such as 1GiB, got '999",
    ),
    "NUL in a path": (
        GOOD.replace("host: a", 'host: a, password_file: "/tmp/\\0x"'),
        "E-CFG-VALUE shipper.yaml:2:54 a NUL character cannot be in a value; remove it",
    ),
    "NUL in state_dir": (GOOD + 'state_dir: "/tmp/\\0x"\n', "E-CFG-VALUE shipper.yaml:3:12 a NUL character"),
    "NUL in a host": (GOOD.replace("host: a", 'host: "a\\0"'), "a NUL character cannot be in a value"),
    "NUL in a list": ('x-a: ["\\0"]\n' + GOOD, "E-CFG-VALUE shipper.yaml:1:7 a NUL character"),
    "NUL in a key": (GOOD + '"a\\0": 1\n', "E-CFG-YAML shipper.yaml:3:1 this key is no word"),
    "NUL in the file": (GOOD + "x-a: \0\n", "E-CFG-YAML shipper.yaml:3:6 not valid YAML"),
    "ESC in the file": (GOOD + "x-a: \x1b[2J\n", "E-CFG-YAML shipper.yaml:3:6 not valid YAML"),
    "half a character": (
        GOOD.replace("host: a", "host: '${BROKEN}'"),
        "E-CFG-VALUE shipper.yaml:2:36 half of a character (a lone surrogate), from '${BROKEN}', cannot be in a value",
    ),
    "line feed in a host": (
        GOOD.replace("host: a", 'host: "a\\nb"'),
        r"E-CFG-VALUE shipper.yaml:2:36 sinks.vault.host: no host and no URL has a space or a control character, got 'a\nb'",
    ),
    "space in a URL": (GOOD.replace("host: a", 'host: a, endpoint: "http://h /x"'), "no host and no URL has a space"),
    "much from variables": (
        GOOD + "x-a: '" + "${LONG}" * 100_000 + "'\n",
        "E-CFG-ENV shipper.yaml:3:6 variables fill in more than 1 MiB",
    ),
    "much from variables in many values": (
        GOOD + "x-a: [" + "'${LONG}'," * 5_000 + "]\n",
        "variables fill in more than 1 MiB",
    ),
    "deep condition": (
        GOOD + "routes: [{to: vault, match: '" + "(" * 50_000 + "'}]\n",
        "E-CFG-MATCH shipper.yaml:3:29 routes[0].match: ",
    ),
}
ENVIRON = {"BROKEN": os.fsdecode(b"a\xff"), "LONG": "x" * 100_000}


@pytest.mark.parametrize("name", HOSTILE)
def test_it_is_refused_soon_in_little_memory_and_with_its_place(name: str) -> None:
    text, told = HOSTILE[name]
    tracemalloc.start()
    began = time.process_time()
    try:
        with pytest.raises(ConfigError) as refused:
            loads(text, ENVIRON)
    finally:
        seconds, (_, peak) = time.process_time() - began, tracemalloc.get_traced_memory()
        tracemalloc.stop()
    problems = refused.value.problems
    assert any(told in problem for problem in problems), "\n".join(problems)[:2_000]
    assert len(problems) <= MAX_PROBLEMS + 1
    assert max(map(len, problems)) < 1_200
    # Under tracemalloc, which makes everything several times slower.
    assert seconds < 5
    assert peak < 60 << 20


@pytest.mark.parametrize(
    "name", ["alias bomb", "deep flow mappings", "wide", "many unknown keys", "deeper flow sequences"]
)
def test_check_ends_within_a_second_with_78_and_calls_it_no_bug(name: str, tmp_path: Path) -> None:
    (tmp_path / "shipper.yaml").write_text(HOSTILE[name][0].replace("tape", "docker").replace("vault", "stdout"))
    usage = [sys.executable, "-c", MEASURED, str(tmp_path / "shipper.yaml")]
    done = subprocess.run(usage, capture_output=True, text=True, timeout=60, check=False)
    code, seconds, peak = done.stdout.split()
    assert code == "78"
    assert "bug" not in done.stderr
    assert float(seconds) < 1.0
    assert int(peak) < 80 << 10


MEASURED = """
import sys, time
from pathlib import Path
from shipper.__main__ import main
code = main(["check", "--offline", "--config", sys.argv[1]])
# Not what getrusage tells, which begins with the memory of the parent.
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(code, time.process_time(), peak.split()[1])
"""


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"\xff\xfea\x00", "shipper.yaml:1:1 not UTF-8 text; save the file as UTF-8"),
        (b"a: 1\nb: \xe9\n", "shipper.yaml:2:4 not UTF-8 text"),
        (b"#" * (2 << 20), "larger than 1 MiB; this is not a config of shipper"),
    ],
)
def test_bytes_that_are_no_text_are_refused(tmp_path: Path, data: bytes, told: str) -> None:
    (tmp_path / "shipper.yaml").write_bytes(data)
    with pytest.raises(ConfigError) as refused:
        load(tmp_path / "shipper.yaml", {})
    assert told in str(refused.value)


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "shipper.yaml").write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert load(tmp_path / "shipper.yaml", {}).active == ("vault",)


def test_a_pipe_that_nobody_writes_holds_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "PIPE_TIMEOUT", 0.05)
    os.mkfifo(tmp_path / "shipper.yaml")
    with pytest.raises(ConfigError, match="this is a pipe, and nothing came out of it within"):
        load(tmp_path / "shipper.yaml", {})


def test_a_pipe_may_stand_for_the_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "shipper.yaml")
    # Open for both, so that neither side waits for the other to open it.
    writer = os.open(tmp_path / "shipper.yaml", os.O_RDWR)
    os.write(writer, GOOD[:20].encode())

    def end() -> None:
        os.write(writer, GOOD[20:].encode())
        os.close(writer)

    later = threading.Timer(0.2, end)
    later.start()
    try:
        assert load(tmp_path / "shipper.yaml", {}).active == ("vault",)
    finally:
        later.join()


def test_a_pipe_in_place_of_a_secret_is_told(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "password")
    with pytest.raises(ConfigError, match=r"sinks\.vault\.password_file: .*/password is not a file; name one"):
        loads(GOOD.replace("host: a", f"host: a, password_file: {tmp_path}/password"), {})


def test_a_path_that_can_be_none_is_told() -> None:
    with pytest.raises(ConfigError, match="this cannot be a path"):
        load("/tmp/\0x", {})


#: What a plug-in may do that is not in its contract, and where.
MISDEEDS = {
    "import": ("raise SystemExit(3)", "", "E-CFG-PLUGIN shipper.yaml:3:27 sinks.rude: SystemExit: 3"),
    "import in vain": ("1 / 0", "", "E-CFG-PLUGIN shipper.yaml:3:27 sinks.rude: ZeroDivisionError: division by zero"),
    "post_init": ("", "raise KeyError(self.token)", "E-CFG-VALUE shipper.yaml:3:20 sinks.rude: KeyError: '***'"),
    "post_init without end": ("", "self.__post_init__()", "E-CFG-VALUE shipper.yaml:3:20 sinks.rude: RecursionError"),
}


@pytest.mark.parametrize("misdeed", MISDEEDS)
def test_whatever_a_plug_in_raises_is_told_as_a_problem_of_its_section(
    misdeed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_import, post_init, told = MISDEEDS[misdeed]
    info = tmp_path / "rude" / "rude-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rude\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[shipper.sinks]\nrude = shipper_rude_plugin:Rude\n")
    (tmp_path / "rude" / "shipper_rude_plugin.py").write_text(
        "from shipper.sink import Sink, SinkConfig\n"
        "class RudeConfig(SinkConfig, frozen=True, kw_only=True):\n"
        "    token: str = ''\n"
        f"    def __post_init__(self): {post_init or 'pass'}\n"
        "class Rude(Sink):\n"
        "    config = RudeConfig\n"
        f"{on_import}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "rude"))
    monkeypatch.delitem(sys.modules, "shipper_rude_plugin", raising=False)
    with pytest.raises(ConfigError) as refused:
        loads("sources: {tape: {type: tape}}\nsinks:\n  rude:            {type: rude, token: hunter2}\n", {})
    assert refused.value.problems[0].startswith(told)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("section", "secret"),
    [
        ("headers: {Cookie: [hunter2]}", "hunter2"),
        ("headers: {X-Anything: 12345678}", "12345678"),
        ("labels: {apiKey: 12345678}", "12345678"),
        ("endpoint: [http://me:hunter2@h]", "hunter2"),
        ("port: 'http://h/?apikey=hunter2'", "hunter2"),
        ("user: root, headers: {Cookie: hunter2}", "hunter2"),
    ],
)
def test_no_message_tells_a_secret(section: str, secret: str) -> None:
    with pytest.raises(ConfigError) as refused:
        loads(GOOD.replace("host: a", f"host: a, {section}"), {})
    assert secret not in str(refused.value)


def test_a_section_shows_no_secret_of_itself() -> None:
    more = "headers: {Cookie: S3c, Accept: a/b}, labels: {secret: S3c, app: x}, endpoint: 'http://u:S3c@h/?sig=S3c&a=1'"
    section = loads(GOOD.replace("host: a", f"host: a, password: S3c, {more}"), {}).sinks["vault"]
    assert "S3c" not in repr(section)
    assert "'Accept': 'a/b'" in repr(section)
    assert "http://***@h/?sig=***&a=1" in repr(section)
