"""The lists of what the image installs follow pyproject.toml, and every file in them has a hash."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
_PINNED = re.compile(r"([a-z0-9-]+)==(\S+)( ; [^\\]+)? \\")


def pinned(name: str) -> dict[str, Version]:
    """The versions in a list; each has hashes."""
    found: dict[str, Version] = {}
    hashes = 0
    for line in (ROOT / "deploy" / "image" / name).read_text().splitlines():
        if match := _PINNED.fullmatch(line):
            assert not found or hashes, f"{list(found)[-1]} has no hash"
            found[match[1]], hashes = Version(match[2]), 0
        elif re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line):
            hashes += 1
        else:
            assert line.startswith("#"), line
    assert hashes
    return found


def wanted(project: dict[str, object]) -> list[str]:
    """What the package needs with all that it can use."""
    assert isinstance(project["optional-dependencies"], dict)
    extras: dict[str, list[str]] = project["optional-dependencies"]
    found, waiting = [], [*project["dependencies"], *extras["all"]]  # type: ignore[misc]
    while waiting:
        requirement = Requirement(waiting.pop())
        if requirement.name == "shipper":
            waiting += [one for extra in requirement.extras for one in extras[extra]]
        else:
            found.append(str(requirement))
    return found


@pytest.mark.parametrize("name", ["requirements.txt", "build-requirements.txt"])
def test_the_lists_have_what_pyproject_asks_for(name: str) -> None:
    text = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = wanted(text["project"]) if name == "requirements.txt" else text["build-system"]["requires"]
    versions = pinned(name)
    for requirement in map(Requirement, needed):
        version = versions.get(requirement.name.lower().replace("_", "-"))
        assert version is not None, f"{requirement.name} is not in {name}; its first lines say how it is made"
        assert version in requirement.specifier, f"{requirement} is not what {name} has, {version}"


def test_the_image_has_the_version_of_the_package() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"ARG VERSION={version}\n" in (ROOT / "Dockerfile").read_text()
