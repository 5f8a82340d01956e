"""Following files: what every source that reads files shares.

A `fileset.FileSet` is one log: its live file and its rotated siblings, each open one a `tailedfile.TailedFile`. Three
layers build the base class of such sources: `rotation.Rotation` (which file is which), `following.Following` (bytes to
records) and `engine.TailSource` (which log is next). ``dockerjson`` and ``plainlines`` decode lines; `joiner.Joiner`
and ``traces`` put together what belongs together.

It imports the contract of a source, the data model and telemetry; never a source, the state or a sink. Begin with
``fileset`` and ``tailedfile``, then read `rotation.Rotation._scan` and `following.Following._read_chunk`.
"""
