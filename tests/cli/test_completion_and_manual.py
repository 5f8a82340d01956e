"""What shells complete, and the manual page."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from shipper.__main__ import COMMANDS, EXIT_CODES
from shipper.docgen.manual import main as write_manual
from shipper.docgen.manual import manual

Run = Callable[..., "subprocess.CompletedProcess[str]"]
BIN = Path(sys.executable).parent
#: What each shell is told to do: load the script, complete ``shipper doc``, and print what it found.
SHELLS = {
    "bash": "source <(shipper completion bash); COMP_WORDS=(shipper doc); COMP_CWORD=1; _shipper_completion shipper;"
    " echo ${COMPREPLY[@]}",
    "fish": "shipper completion fish | source; complete -C 'shipper doc'",
    "zsh": "autoload -U compinit; compinit -D; source <(shipper completion zsh); (( $+functions[_shipper_completion] ))"
    " && whence -w _shipper_completion; print -l ${_comps[shipper]}",
}


def offered(words: str, count: int) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-m", "shipper"],
        capture_output=True, text=True, check=True,
        env={**os.environ, "_SHIPPER_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(count)},
    )  # fmt: skip
    return [line.partition(",")[2] for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("words", "count", "expected"),
    [
        ("shipper ", 1, list(COMMANDS)),
        ("shipper st", 1, ["status"]),
        ("shipper dead-letters ", 2, ["drop", "ls", "retry", "show"]),
        ("shipper doctor --no", 2, ["--no-canary"]),
        ("shipper query -o ", 3, ["pretty", "json", "raw", "logfmt", "csv"]),
    ],
)
def test_what_is_offered(words: str, count: int, expected: list[str]) -> None:
    assert offered(words, count) == expected


@pytest.mark.parametrize("shell", SHELLS)
def test_a_real_shell_completes(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    done = subprocess.run(
        [shell, "-c", SHELLS[shell]],
        capture_output=True, text=True, check=False, timeout=60,
        env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(tmp_path)},
    )  # fmt: skip
    assert ("_shipper_completion" if shell == "zsh" else "doctor") in done.stdout, done.stderr


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_of_every_shell(shell: str, run: Run) -> None:
    done = run("completion", shell)
    assert done.returncode == 0
    assert "_SHIPPER_COMPLETE" in done.stdout
    assert "shipper" in done.stdout


def test_another_shell_is_a_usage_error(run: Run) -> None:
    assert run("completion", "tcsh").returncode == 2


def test_completing_commands_imports_none_of_them() -> None:
    code = (
        "import sys; from shipper.__main__ import main; main();"
        "print([m for m in sys.modules if m.startswith('shipper.commands.')], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={**os.environ, "_SHIPPER_COMPLETE": "bash_complete", "COMP_WORDS": "shipper ", "COMP_CWORD": "1"},
    )  # fmt: skip
    assert done.stderr == "[]\n"


def test_the_manual_has_every_command_option_and_exit_code() -> None:
    page = manual()
    for name in COMMANDS:
        assert f'.SS "shipper {name}"'.replace("-", "\\-") in page
    assert "\\fB\\-\\-no\\-canary\\fR" in page
    for code in EXIT_CODES:
        assert f"\\fB{code}\\fR" in page
    assert page.isascii()


def test_the_manual_in_the_tree_is_in_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = Path(__file__).parents[2] / "man" / "shipper.1"
    assert tree.read_text() == manual()
    page = tmp_path / "shipper.1"
    assert write_manual([str(page), "--check"]) == 1
    assert "run make docs" in capsys.readouterr().err
    assert not page.exists()
    assert write_manual([str(page)]) == 0
    assert write_manual([str(page), "--check"]) == 0


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
def test_the_manual_is_well_formed() -> None:
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", "-P-cbou"], input=manual(), capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    # As people see it: nothing is lost to a request, dashes are dashes.
    assert re.search(r"--no-canary\s+Write no test record\.", done.stdout)
    assert "'level>=error' --since 2h" in done.stdout
    assert "√" in done.stdout
