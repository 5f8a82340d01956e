"""The kit for authors of sinks and sources: shipped, and held as stable as the contracts that it tests.

`sink_contract`, `source_contract` and `fault_contract` are classes to inherit from: begin there. `chaos` is a sink that
fails on purpose, `clock` and `filesystem` are the seams for time and disk, `batches` makes records. Imports anything
below the command line; nothing of the daemon imports this.
"""
