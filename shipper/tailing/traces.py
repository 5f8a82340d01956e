"""Which lines belong together: stack traces of Node, Java, Python and Go, and messages of several lines.

The rules follow Fluent Bit's multiline parsers for Java (which serve V8 too), Python and Go, and add what those
miss: an uncaught Node error's ``file:line`` head, the properties Node prints in braces, Python's chained
exceptions with the blank lines between them, and a run of frames whose head was lost.

A source keeps one open `Trace` per stream and asks it about every line; it never looks ahead. Every kind of trace
has an indented line right after its head, so a stretch of lines without one cannot hold a trace, apart from a head
at its very end: that is what makes `may_contain` and `may_contain_lines` cheap.
"""

from __future__ import annotations

import re
from operator import itemgetter
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

#: How many bytes, or lines, at the end of a chunk are searched for a head whose frames stand in the next one.
_TAIL_BYTES: Final = 16 << 10
_TAIL_LINES: Final = 50

_FIRST: Final = itemgetter(0)
_FIRST_OF_NO_TRACE: Final = frozenset('{["0123456789<*+-')
_HEAD_WORDS = re.compile(
    rb"Error|Exception|Throwable|Traceback|panic:|fatal error:|goroutine |Caused by:|Uncaught|\.[cm]?[jt]s:\d+(?:\\n)?[\"\n]|node:"
)

#: ``TypeError: x``, ``java.io.IOException``, ``failed: Error [ERR_X]: y``, ``[Error: z] {``, ``Uncaught Error: x``.
#: Long lines are judged by their first 400 characters, so that a megabyte costs no more than a line.
_ERROR_HEAD = re.compile(r"(?:Error|Exception|Throwable)(?: \[[\w$.-]+\])?(?::|\]?(?: ?\{)?$)")
_CAUSE_HEAD = re.compile(r"(?:Caused by|Uncaught|Unhandled rejection)[: ]|Exception in thread ")
_CODE_HEAD = re.compile(r"(?:file://|node:|/|[A-Za-z]:\\)\S*:\d+$|\S+\.[cm]?[jt]sx?:\d+$")
_GO_HEAD = re.compile(r"(?:\d{4}/\d\d/\d\d \d\d:\d\d:\d\d(?:\.\d+)? )?(?:panic: |fatal error: |http: panic serving )")
_GOROUTINE = re.compile(r"goroutine \d+ [^\[\n]*+\[.*\]:$")
_FRAME = re.compile(
    r"\s++(?:eval )?at \S"
    r"|\s*+\.\.\. \d+ (?:more|common frames omitted|lines matching cause stack trace)"
    r"|\s++--- End of inner exception stack trace ---$"
    r"|--- End of stack trace from previous location where exception was thrown ---$"
    r"|\s*+\[CIRCULAR REFERENCE:"
)
_CAUSE = re.compile(
    r"\s*+(?:Caused by|Suppressed|Wrapped by): |\s*+nested exception is:|Thrown at:$|Emitted '[^']*' event "
)
_CARET = re.compile(r"\s*+\^++\s*+$")
_PYTHON_LAST = re.compile(r"[^\W\d]\w*+(?:\.[^\W\d]\w*+)*+(?::(?: |$)|$)")
_PYTHON_CHAIN = re.compile(
    r"During handling of the above exception, another exception occurred:$"
    r"|The above exception was the direct cause of the following exception:$"
)
_PYTHON_HEAD: Final = "Traceback (most recent call last):"
_GO_CALL = re.compile(r"[^\s(]++\(.*\)$|created by \S|\.\.\.additional frames elided\.\.\.|\.\.\.\d+ frames elided")
_GO_NEXT = re.compile(r"\[signal |\[recovered\]|runtime(?:: | stack:)|panic: |exit status \d+$|goroutine ")
_FALLBACK_HEAD = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d{1,9})?(?:Z|[+-]\d\d:?\d\d)? \[\w+\]")

_Kind = Literal["v8", "code", "python", "go", "fallback"]


class Trace:
    """A group of lines that is being gathered. Made by `open_trace`, asked about each next line of its stream.

    ``certain`` says that it is surely a trace: a lone head (``TypeError: x`` is also a common last line of a
    message) is not, until a frame follows. A source may hold an uncertain one for a shorter time. ``loose`` is how
    many of the last accepted lines were taken on trial (blank lines that may stand inside a trace); a source that
    closes the group may give them back as records of their own.
    """

    __slots__ = ("_braces", "_kind", "_state", "certain", "loose")

    def __init__(self, kind: _Kind, *, certain: bool = False, state: str = "", braces: bool = False) -> None:
        self.certain = certain
        self.loose = 0
        self._kind = kind
        self._state = state
        self._braces = braces

    def continues(self, line: str) -> bool:
        """Tell whether ``line`` belongs to the group, and remember it if so. After False the group is closed."""
        kind = self._kind
        if kind == "fallback":
            accepted = _FALLBACK_HEAD.match(line) is None
            self.certain |= accepted
            return accepted
        line = line.rstrip("\r\n")
        if kind == "python":
            sure = self._python(line)
        elif kind == "go":
            sure = self._go(line)
        elif kind == "code":
            sure = self._code(line)
        else:
            sure = self._v8(line)
        if sure is None:
            return False
        self.loose = 0 if sure else self.loose + 1
        return True

    # Each rule gives True (belongs), False (on trial) or None (does not belong).

    def _v8(self, line: str) -> bool | None:
        if _FRAME.match(line):
            self.certain = True
            self._braces = self._braces or line.endswith((" {", "["))
            return True
        if _CAUSE.match(line):
            self.certain = True
            return True
        if self._braces:
            if line.startswith("}"):
                self._braces = False
                self.certain = True
                return True
            if line.startswith((" ", "\t")):
                return True
        if self._state == "uncaught":
            if not line:
                return False
            if line.startswith("Node.js v"):
                return True
        return None

    def _code(self, line: str) -> bool | None:
        # /app/x.js:12, the code, a caret, a blank line, then the head of the error.
        state = self._state
        if state == "":
            self._state = "code"
            return False
        if state == "code":
            if _CARET.match(line):
                self._state = "caret"
                self.certain = True
                return True
            return None
        if not line:
            return False
        if state == "caret":
            self._kind = "v8"
            self._state = "uncaught"
            self._braces = line.endswith("{")
            return True
        return None

    def _python(self, line: str) -> bool | None:
        state = self._state
        if line.startswith((" ", "\t")):
            if state == "done" and not line.lstrip(" ").startswith(("|", "+")):
                return None
            self.certain = True
            return True
        if state == "":
            if line and _PYTHON_LAST.match(line):
                self._state = "done"
                return True
            return None
        if not line:
            return False
        if _PYTHON_CHAIN.match(line):
            self._state = "chain"
            return True
        if state == "chain" and line.endswith(_PYTHON_HEAD):
            self._state = ""
            return True
        return None

    def _go(self, line: str) -> bool | None:
        if not line:
            return False
        if self._state == "end":
            return None
        if _GO_NEXT.match(line):
            if line.startswith("goroutine "):
                self.certain = True
                self._state = "goroutine"
            elif line.startswith("exit status"):
                self._state = "end"
            return True
        if line[0] == "\t":
            return True
        if self._state == "goroutine" and _GO_CALL.match(line):
            return True
        return None


def open_trace(line: str, rule: str = "trace") -> Trace | None:
    """Open a group if ``line`` may be the first of one, else give None.

    ``rule`` is ``trace`` (stack traces) or ``fallback``: a line ``ISO-time [level] message`` opens a group that
    every line up to the next such line continues.
    """
    if rule == "fallback":
        return Trace("fallback") if _FALLBACK_HEAD.match(line) else None
    head = line[:400].rstrip("\r\n")
    if not head or head[0] == "{":
        return None
    if head[0] in " \t":
        if _FRAME.match(head) and not head.lstrip().startswith("..."):
            return Trace("v8", certain=True, braces=line.rstrip().endswith("{"))
        return Trace("python") if head.endswith(_PYTHON_HEAD) else None
    # Most lines are no head: plain searches turn them away before any regular expression sees them.
    last = head[-1]
    if last == ":":
        if head.endswith(_PYTHON_HEAD):
            return Trace("python")
        if _GOROUTINE.match(head):
            return Trace("go", certain=True, state="goroutine")
    if ("panic" in head or "fatal error" in head) and _GO_HEAD.match(head):
        return Trace("go")
    if last.isdecimal() and _CODE_HEAD.match(head):
        return Trace("code")
    if (("Error" in head or "Exception" in head or "Throwable" in head) and _ERROR_HEAD.search(head)) or (
        head[0] in "CEU" and _CAUSE_HEAD.match(head)
    ):
        return Trace("v8", braces=line.rstrip().endswith("{"))
    return None


def may_contain(block: bytes) -> bool:
    """Tell whether a chunk of whole lines, Docker JSON or plain, may hold a line of a trace.

    False means that no line in it can open or continue one, so joining can be skipped while no group is open. A
    few passes of ``bytes.find``; `may_contain_lines` is cheaper still once the lines are decoded.
    """
    if block.startswith(b'{"log":'):
        if b'"log":"  ' in block or b'"log":"\\t' in block or b'"log":" at ' in block:
            return True
    elif block[:1] in (b" ", b"\t") or b"\n " in block or b"\n\t" in block:
        return True
    return _HEAD_WORDS.search(block, max(0, len(block) - _TAIL_BYTES)) is not None


def may_contain_lines(lines: Sequence[str]) -> bool:
    """Tell the same of decoded lines, at about a twentieth of a yardstick a line."""
    try:
        firsts = set(map(_FIRST, lines))
    except IndexError:  # an empty line
        firsts = {line[:1] for line in lines}
    if " " in firsts or "\t" in firsts:
        return True
    if firsts <= _FIRST_OF_NO_TRACE:
        return False
    return any(open_trace(line) is not None for line in lines[-_TAIL_LINES:])
