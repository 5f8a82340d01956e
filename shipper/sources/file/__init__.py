"""Plain log files by glob, with what rotation made of them.

``globs`` says which paths the configuration names, ``grouping`` which file belongs to which log, ``rotated`` what names
rotation gives; ``source`` puts them together. Begin with ``grouping``.
"""

from shipper.sources.file.source import REMEMBERED, SOURCE, FileConfig, FileSource

__all__ = ["REMEMBERED", "SOURCE", "FileConfig", "FileSource"]
