"""A source, a sink and a transform of our own, installed the way third parties install theirs: as entry points."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MODULE = '''
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from shipper.sink import Sink, SinkConfig
from shipper.source import Source, SourceConfig
from shipper.transform import Transform, TransformConfig


class Tls(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the line is encrypted."""

    ca_file: Annotated[str, Meta(description="The authority.")] = ""
    verify: Annotated[bool, Meta(description="Whether to check the name.")] = True


class VaultConfig(SinkConfig, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A sink with one field of every sort."""

    host: Annotated[str, Meta(description="The server's name.")]
    port: Annotated[int, Meta(description="The server's port.", ge=1, le=65535)] = 3306
    ratio: Annotated[float, Meta(description="A share.")] = 0.5
    user: Annotated[str, Meta(description="The user.", min_length=1)] = "shipper"
    password: Annotated[str, Meta(description="The password.", max_length=40)] = ""
    password_file: Annotated[str, Meta(description="A file that holds the password.")] = ""
    endpoint: Annotated[str, Meta(description="The address.")] = ""
    mode: Annotated[Literal["fast", "safe"], Meta(description="How.")] = "safe"
    timeout: Annotated[str | int, Meta(description="How long one request may take.")] = "30s"
    tables: Annotated[list[str], Meta(description="The tables.")] = []
    labels: Annotated[dict[str, str], Meta(description="Fixed labels.")] = {}
    headers: Annotated[dict[str, str], Meta(description="More headers.")] = {}
    tls: Annotated[Tls, Meta(description="Encryption.")] = Tls()
    retention: Annotated[str | None, Meta(description="How long to keep.")] = None

    def __post_init__(self) -> None:
        if self.user == "root":
            raise ValueError(f"user root with password {self.password} is too mighty; make one of its own")


class Vault(Sink):
    config = VaultConfig

    def __init__(self, config): ...
    def open(self): ...
    def write(self, batch): ...
    def close(self): ...


class TapeConfig(SourceConfig, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A source."""

    include: Annotated[list[str], Meta(description="The files.", extra={"path": True})] = []


class Tape(Source):
    config = TapeConfig

    def open(self, context): ...
    def poll(self, accept): ...
    def idle(self): ...
    def exhausted(self): ...
    def close(self): ...


class ScrubConfig(TransformConfig, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A transform."""

    rules: Annotated[list[str], Meta(description="The rules.")] = []


class Scrub(Transform):
    config = ScrubConfig

    def __init__(self, config):
        for rule in config.rules:
            if rule != "email":
                raise ValueError(f"unknown rule {rule!r}; rules: email")

    def apply(self, batch):
        return batch
'''

ENTRY_POINTS = """
[shipper.sinks]
vault = shipper_vault_plugin:Vault
needy = shipper_needy_plugin:Needy
hollow = shipper_hollow_plugin

[shipper.sources]
tape = shipper_vault_plugin:Tape

[shipper.transforms]
scrub = shipper_vault_plugin:Scrub
"""


@pytest.fixture(autouse=True)
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Install the plugin into a directory of its own for the length of a test."""
    site = tmp_path / "site"
    info = site / "shipper_vault_plugin-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shipper-vault-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    (site / "shipper_vault_plugin.py").write_text(MODULE)
    (site / "shipper_needy_plugin.py").write_text("import an_sdk_that_nobody_has\n")
    (site / "shipper_hollow_plugin.py").write_text('"""Names no class."""\n')
    monkeypatch.syspath_prepend(str(site))
    yield
    for name in ("shipper_vault_plugin", "shipper_needy_plugin", "shipper_hollow_plugin"):
        sys.modules.pop(name, None)
