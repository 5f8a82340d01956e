"""Reading: records that a sink gave back, shown to people and programs.

`display` renders a record (pretty, JSON, logfmt, CSV, raw), `timespan` understands the times that people type. What a
sink can give back is the contract in ``shipper/reader.py``: begin there. Imports `shipper.state`, `shipper.tailing`
and what is below; the commands ``query`` and ``tail`` are thin on top of this.
"""
