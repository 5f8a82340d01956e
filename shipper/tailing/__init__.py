"""Following files that grow, rotate, shrink and vanish: what the sources ``docker`` and ``file`` share."""
