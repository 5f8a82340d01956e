"""What commands print for people: one line at a time that nothing can forge, with a mark, and colour where it is seen."""

from __future__ import annotations

import os
from typing import Any

import click

from shipper.visible import json_text, one_line

MARKS = {"ok": "√", "warn": "!", "fail": "x"}
_COLORS = {"ok": "green", "warn": "yellow", "fail": "red"}


def mark(verdict: str) -> str:
    """Give the mark of ok, warn or fail, in its colour."""
    return click.style(MARKS.get(verdict, "?"), fg=_COLORS.get(verdict))


def painted(text: str, verdict: str) -> str:
    """Give a text in the colour of a verdict."""
    return click.style(text, fg=_COLORS[verdict], bold=True)


def say(text: str, verdict: str = "", *, err: bool = False) -> None:
    """Print a text as one line, behind the mark of a verdict if one is given; to standard error with ``err``.

    The text may hold what a log, a host or a name of a file says: it can neither begin a line nor steer the terminal.
    """
    shown = one_line(text)
    say_painted(f"{mark(verdict)} {shown}" if verdict else shown, err=err)


def say_painted(text: str, *, err: bool = False) -> None:
    """Print a line that holds colours, so no text of others; colours only where the user did not set NO_COLOR."""
    click.echo(text, color=False if os.environ.get("NO_COLOR") else None, err=err)


def say_json(value: Any, *, indent: int = 0) -> None:
    """Print a value as JSON that is safe on a terminal."""
    click.echo(json_text(value, indent=indent))
