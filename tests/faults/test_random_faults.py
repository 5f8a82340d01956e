"""Half a minute of random faults, others each time; ``make soak`` goes on for an hour."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from support.soak import Soak


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_random_faults_lose_and_double_nothing_and_stop_no_thread(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")  # noqa: T201 - pytest shows it on failure
    Soak(tmp_path, seed).run(30)
