"""State: what must survive the daemon: how far every file is safe for every sink.

`ledger` keeps that in memory, where readers and deliveries meet: begin there. `checkpoint` is its file ``state.db``,
`progress` a note of what the reader has in hand, which tells a crash that the same bytes cause each time,
`volume` tells whether the state directory outlives the container. Imports `shipper.telemetry`, the contracts and the
data model; knows no file format of a source and no backend.
"""
