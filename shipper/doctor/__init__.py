"""What ``shipper doctor`` looks at: everything that keeps logs from arriving.

One module an area, each with a ``results`` that gives a `CheckResult` for everything it looked at. Begin with `result`,
which lists all checks by their stable ids; `host` is where facts about the machine come from, and tests plant theirs.
Imports everything below the command line except the daemon's inside; changes nothing, except for an announced canary.
"""
