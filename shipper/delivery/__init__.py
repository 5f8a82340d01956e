"""Delivery: what happens right of the buffers, the same for every sink.

`delivery` is the one loop that writes, retries, splits, dead-letters and acks: begin there. `attempt` is the policy it
follows, which ``dead-letters retry`` follows, too; `retry` says how long to wait. `buffer` and `spill` hold what waits, in
memory or on disk in `frames`; `deadletter` keeps what was refused for good as `letters`. `canary` proves a sink with a
test record, `survey` counts what waits on disk. Imports `shipper.state`, `shipper.telemetry` and
the contracts; a sink has no retry, queue or thread of its own.
"""
