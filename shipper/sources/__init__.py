"""Sources: where lines come from."""
