"""The note of what the reader has in hand: a crash that the same bytes cause each time is noticed, nothing else is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shipper.source import InHand
from shipper.state.progress import STARTS, Progress

_CRASH = """
import os, signal, sys
from pathlib import Path
from shipper.state.progress import Progress
progress = Progress(Path(sys.argv[1]))
for step in sys.argv[2:]:
    if step == "done":
        progress.done()
    elif step == "close":
        progress.close()
        sys.exit(0)
    else:
        progress.take(*map(int, step.split(":")))
os.kill(os.getpid(), signal.SIGKILL)
"""


def die(directory: Path, *steps: str) -> None:
    """Let a real process take these steps and be killed, unless it closes."""
    done = subprocess.run([sys.executable, "-c", _CRASH, str(directory), *steps], check=False, timeout=60)
    assert done.returncode == (0 if steps and steps[-1] == "close" else -signal.SIGKILL)


def look(directory: Path) -> InHand | None:
    """Say what is stuck, as a start that is killed at once would find it, without changing it."""
    kept = (directory / "progress").read_bytes()
    progress = Progress(directory)
    stuck = progress.stuck
    (directory / "progress").write_bytes(kept)
    return stuck


def test_bytes_that_end_every_process_are_named_after_some(tmp_path: Path) -> None:
    for end in range(STARTS):
        assert end == 0 or look(tmp_path) is None
        die(tmp_path, "4:0", "done", "7:100")
    assert look(tmp_path) == InHand(7, 100, STARTS)


def test_once_they_are_passed_over_the_count_begins_anew(tmp_path: Path) -> None:
    for _ in range(STARTS):
        die(tmp_path, "7:100")
    progress = Progress(tmp_path)
    progress.pass_over()
    progress.take(7, 200)
    die(tmp_path, "7:200")
    assert look(tmp_path) is None


@pytest.mark.parametrize(
    "between",
    [["7:100", "done"], ["7:100", "close"], ["close"], ["7:100", "done", "7:200"], ["9:100"]],
    ids=["got through", "ended in order", "was not there", "died further on", "died elsewhere"],
)
def test_a_row_that_is_broken_names_nothing(tmp_path: Path, between: list[str]) -> None:
    """A kill while busy, an outage or an operator's restart is no reason to skip a byte."""
    for _ in range(STARTS - 1):
        die(tmp_path, "7:100")
    die(tmp_path, *between)
    for _ in range(STARTS - 1):
        assert look(tmp_path) is None
        die(tmp_path, "7:100")
    die(tmp_path, "7:100")
    assert look(tmp_path) == InHand(7, 100, STARTS)


def test_a_kill_between_two_batches_names_nothing(tmp_path: Path) -> None:
    for _ in range(3 * STARTS):
        die(tmp_path, "7:100", "done")
    assert look(tmp_path) is None


def test_other_files_that_are_got_through_first_do_not_hide_it(tmp_path: Path) -> None:
    for number in range(STARTS):
        die(tmp_path, f"1:{number}", "done", f"2:{number}", "done", "7:100")
    assert look(tmp_path) == InHand(7, 100, STARTS)


@pytest.mark.parametrize("content", [b"", b"x", b"\xff" * 4096, bytes(4096)])
def test_a_damaged_note_is_no_note(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "progress").write_bytes(content)
    progress = Progress(tmp_path)
    assert progress.left is None
    progress.take(1, 2)
    progress.done()
    progress.close()


def test_the_note_is_private(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        Progress(tmp_path).close()
    finally:
        os.umask(before)
    assert (tmp_path / "progress").stat().st_mode & 0o777 == 0o600
