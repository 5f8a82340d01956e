"""Routing: the condition language, and which records go to which sinks.

`condition` compiles a text such as ``level>=error service:api`` to a test of batches and records; routes, transforms
and queries share it, so a condition means the same everywhere. `router` splits a batch by sink. Imports the data model
and the contracts. Begin with the grammar in the docstring of `condition`.
"""
