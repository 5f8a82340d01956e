from __future__ import annotations

import subprocess
import sys

import pytest

from shipper import registry
from shipper.errors import ConfigError


def test_built_in_and_third_party_types_are_listed() -> None:
    assert {"stdout", "blackhole", "vault"} <= set(registry.names(registry.SINKS))
    assert "vault" not in registry.names(registry.SINKS, plugins=False)
    assert "tape" in registry.names(registry.SOURCES)
    assert "scrub" in registry.names(registry.TRANSFORMS)


def test_private_modules_are_no_types() -> None:
    assert not [name for name in registry.names(registry.SINKS) if name.startswith("_")]
    with pytest.raises(ConfigError, match="cannot be a sink type"):
        registry.sink("_render")


def test_listing_imports_no_sink() -> None:
    code = (
        "import sys; from shipper import registry; registry.names(registry.SINKS);"
        "print([m for m in sys.modules if m.startswith('sinks.')])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_classes_come_by_name() -> None:
    assert registry.sink("stdout").__module__ == "sinks.stdout"
    assert registry.sink("vault").config.__name__ == "VaultConfig"
    assert registry.source("tape").__name__ == "Tape"
    assert registry.transform("scrub").__name__ == "Scrub"
    assert registry.reader("blackhole") is None


@pytest.mark.parametrize("name", ["", "Stdout", "../stdout", "stdout.x", "os; import", "1a", "stdout\n"])
def test_a_name_that_could_reach_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be a sink type"):
        registry.sink(name)
