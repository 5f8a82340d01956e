"""Transforms: what happens to records between parsing and routing."""
