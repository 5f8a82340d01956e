"""Parsing: level, message, attributes and time of every line of a batch."""

from __future__ import annotations

from shipper.parse.parser import FORMATS, Parser

__all__ = ["FORMATS", "Parser"]
