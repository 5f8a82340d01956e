"""Transforms: what happens to records between parsing and routing. One module a transform, named like its ``type``.

`redact` masks secrets, `filter` drops by a condition, `sample` keeps a share. Each has a config class, a class that
inherits `shipper.transform.Transform`, and ``TRANSFORM = ...``, by which the registry finds it. Imports the contracts,
the data model, `shipper.parse` and `shipper.routing`. Begin with ``shipper/transform.py``, then `filter`.
"""
