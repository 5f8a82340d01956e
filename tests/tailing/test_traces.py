"""Lines that belong together, asked line by line as a source does."""

from __future__ import annotations

import json

import pytest

from shipper.tailing.traces import may_contain, may_contain_lines, open_trace

NODE = """TypeError: Cannot read properties of null (reading 'x')
    at /app/app.js:12:34
    at connect (net.js:1:1) {
  errno: -111,
  [cause]: Error: y
      at foo (a.js:1:1)
}"""
UNCAUGHT = """/app/x.js:12
    throw new Error("x");
    ^

Error: x
    at Object.<anonymous> (/app/x.js:12:1)

Node.js v20.1.0"""
PYTHON = """Traceback (most recent call last):
  File "a.py", line 1, in f
    x
KeyError: 'a'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "a.py", line 1
ValueError: bad"""
GO = """panic: boom [recovered]
\tpanic: again

goroutine 1 [running]:
main.main()
\t/tmp/x.go:5 +0x39
created by main.x
\t/tmp/x.go:6

goroutine 2 [select]:
net/http.(*conn).serve(0xc000, {0x1, 0x2})
\t/x.go:5 +0x39
exit status 2"""
DEADLOCK = """fatal error: all goroutines are asleep - deadlock!

goroutine 1 [chan receive]:
main.main()
\t/tmp/x.go:5 +0x39"""
JAVA = """Exception in thread "main" java.lang.IllegalStateException: a
\tat com.x.Y.z(Y.java:4)
\tSuppressed: java.lang.Exception: s
\t\tat x.y(z.java)
Caused by: java.io.IOException: b
\tat x.y(z.java)
\t... 12 more"""
ORPHANS = """    at param (/app/index.js:637:14)
    at next (/app/index.js:1:2)"""
TRACES = {
    "node": NODE,
    "uncaught": UNCAUGHT,
    "python": PYTHON,
    "go": GO,
    "deadlock": DEADLOCK,
    "java": JAVA,
    "orphans": ORPHANS,
}


def groups(text: str, rule: str = "trace") -> list[str]:
    made: list[list[str]] = []
    trace = None
    for line in text.split("\n"):
        if trace is not None and trace.continues(line):
            made[-1].append(line)
            continue
        trace = open_trace(line, rule)
        made.append([line])
    return ["\n".join(lines) for lines in made]


@pytest.mark.parametrize("name", TRACES)
def test_a_trace_is_one_group_and_its_neighbours_stay_alone(name: str) -> None:
    text = TRACES[name]
    assert groups(f'before\n{{"level":"info"}}\n{text}\nnext line') == ["before", '{"level":"info"}', text, "next line"]


@pytest.mark.parametrize("name", TRACES)
def test_two_traces_in_a_row_stay_two(name: str) -> None:
    other = JAVA if name != "java" else NODE
    assert groups(f"{TRACES[name]}\n{other}") == [TRACES[name], other]


@pytest.mark.parametrize("name", TRACES)
def test_a_chunk_that_holds_a_trace_is_noticed_in_both_forms(name: str) -> None:
    lines = ["GET / 200"] * 200 + TRACES[name].split("\n") + ["GET / 200"] * 200
    docker = "".join(
        json.dumps({"log": f"{line}\n", "stream": "stdout"}, separators=(",", ":")) + "\n" for line in lines
    )
    assert may_contain(docker.encode())
    assert may_contain("\n".join([*lines, ""]).encode())
    assert may_contain_lines(lines)


@pytest.mark.parametrize("name", [name for name in TRACES if name != "orphans"])
def test_a_head_at_the_end_of_a_chunk_is_noticed(name: str) -> None:
    lines = ["GET / 200"] * 200 + [TRACES[name].split("\n")[0]]
    docker = "".join(
        json.dumps({"log": f"{line}\n", "stream": "stdout"}, separators=(",", ":")) + "\n" for line in lines
    )
    assert may_contain(docker.encode())
    assert may_contain("\n".join([*lines, ""]).encode())
    assert may_contain_lines(lines)


def test_a_chunk_of_ordinary_lines_is_passed_over() -> None:
    lines = [
        '{"level":"info","message":"x"}',
        '1.1.1.1 - - [x] "GET / HTTP/1.1" 200 1',
        "2026-11-22T10:00:00Z [info] x",
    ]
    docker = "".join(
        json.dumps({"log": f"{line}\n", "stream": "stdout"}, separators=(",", ":")) + "\n" for line in lines
    )
    assert not may_contain(docker.encode())
    assert not may_contain("\n".join([*lines, ""]).encode())
    assert not may_contain_lines(lines)


def test_a_lone_head_is_uncertain_until_a_frame_follows() -> None:
    trace = open_trace("TypeError: x")
    assert trace is not None
    assert not trace.certain
    assert trace.continues("    at f (/a.js:1:2)")
    assert trace.certain


def test_blank_lines_taken_on_trial_are_counted() -> None:
    trace = open_trace("Traceback (most recent call last):")
    assert trace is not None
    assert all(trace.continues(line) for line in ['  File "a"', "ValueError: x", ""])
    assert trace.loose == 1
    assert not trace.continues("next")


def test_the_fallback_rule_joins_everything_up_to_the_next_head() -> None:
    text = "2026-11-22T20:47:22.856Z [error] a\n\n  more\nand more\n2026-11-22T20:47:22.857Z [info] b"
    assert groups(text, "fallback") == [text.rsplit("\n", 1)[0], text.rsplit("\n", 1)[1]]
    assert open_trace("TypeError: x", "fallback") is None


def test_a_megabyte_line_costs_little_and_opens_nothing() -> None:
    assert open_trace("x" * 1_000_000) is None
    assert open_trace("$" * 1_000_000) is None
