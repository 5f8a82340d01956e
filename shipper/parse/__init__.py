"""Parsing: the level, message, attributes and time of every line of a batch.

`Parser` fills the columns of a batch at once and is where to begin; `lines` recognises one line exactly and decides
what is right, `access` cuts many access-log lines, `levels` and `times` know the words and forms that both use.
`reparse` does the same for raw lines that were read back. Imports the data model and `shipper.native` only, so a line
means the same in the daemon, in ``test-parse`` and in ``query``.
"""

from __future__ import annotations

from shipper.parse.parser import FORMATS, Parser

__all__ = ["FORMATS", "Parser"]
