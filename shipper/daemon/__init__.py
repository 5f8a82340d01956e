"""The running program: built from one configuration, run, told to stop or to reload, and seen by its supervisor.

Begin with `shipper.daemon.pipeline`: it names the threads and the order in which they stop. `shipper.daemon.parts`
builds, `shipper.daemon.intake` is everything left of the buffers, `shipper.daemon.keeper` saves and tells how things
stand, `shipper.daemon.daemon` takes signals and puts one pipeline in the place of another.

May import every room below: reading, delivery, sources, state, tailing, telemetry, config, routing and parse.
"""
