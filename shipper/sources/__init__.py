"""Sources: where lines come from, one module a kind.

A module holds the section's config class, the source class and ``SOURCE``; the registry finds it by the section's
``type``. A source of files says where logs are, which files belong to which log, and how their lines are decoded; the
rest is `shipper.tailing.engine.TailSource`. It may import tailing, parse, telemetry and the contracts.

Begin with ``docker``; a new kind of source has the promises of `shipper.source.Source` and the tests of
`shipper.testing.source_contract.SourceContract` to keep.
"""
