"""Configuration: from a YAML file to typed sections, every mistake told at once with its line and column.

`document` reads YAML to nodes that know their place, `convert` turns nodes into the classes that own the keys,
`loader` puts both together (begin there), `types` has the sections that belong to no component, `schema` makes the
JSON Schema. Imports the registry, the contracts and `shipper.routing`; whatever runs by a configuration imports this.
"""
