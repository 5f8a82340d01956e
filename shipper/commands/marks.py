"""How verdicts look on a terminal: a mark, and colour where somebody sees it."""

from __future__ import annotations

import os

import click

MARKS = {"ok": "√", "warn": "!", "fail": "x"}
_COLORS = {"ok": "green", "warn": "yellow", "fail": "red"}


def mark(verdict: str) -> str:
    """Give the mark of ok, warn or fail, in its colour."""
    return click.style(MARKS.get(verdict, "?"), fg=_COLORS.get(verdict))


def painted(text: str, verdict: str) -> str:
    """Give a text in the colour of a verdict."""
    return click.style(text, fg=_COLORS[verdict], bold=True)


def say(text: str) -> None:
    """Print a line; colours only on a terminal whose user did not set NO_COLOR."""
    click.echo(text, color=False if os.environ.get("NO_COLOR") else None)
