"""The kit for authors of sinks and sources; docs/how-to/write-a-sink.md is where a newcomer begins.

Contracts to inherit (`sink_contract`, `source_contract`, `fault_contract`), the base of stand-ins for HTTP backends
(`http_server`), a proxy that breaks connections, a sink that fails on demand (`chaos`), clocks, a faulty file system,
and `rig`: a real buffer, delivery and ledger around one sink. It needs pytest, which the extra ``testing`` brings.
Imports anything below the command line; nothing of the daemon imports it, and it knows nothing of ``tests/support``.
"""
