"""State that would go with its container is found out from mountinfo, as engines really write it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from shipper.commands.demo import run_line
from shipper.errors import ConfigError
from shipper.state.volume import OVERRIDE, require_lasting, short_lived
from support.daemon import Daemon

ID = "9f" * 32
STATE = Path("/var/lib/shipper")
#: Docker 28, overlay2, --read-only --tmpfs /tmp. The root is mounted first, the volumes after it.
LAYER = "600 500 0:60 / / ro,relatime - overlay overlay rw,lowerdir=/a:/b,upperdir=/c"
OWN_FILES = f"610 600 254:0 /var/lib/docker/containers/{ID}/hostname /etc/hostname rw - ext4 /dev/vda rw"
TMP = "611 600 0:70 / /tmp rw,nosuid - tmpfs tmpfs rw"
DISK = "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard"

World = Callable[..., Path]


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A root with a mountinfo and the marks of an engine."""

    def make(*mounts: str, mark: str = "") -> Path:
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/mountinfo").write_text("\n".join(mounts) + "\n")
        if mark:
            (tmp_path / mark).parent.mkdir(exist_ok=True)
            (tmp_path / mark).touch()
        return tmp_path

    return make


def volume(name: str, kind: str = "ext4", point: Path = STATE) -> str:
    return f"620 600 254:0 /docker/volumes/{name}/_data {point} rw,relatime master:1 - {kind} /dev/vda rw"


def test_the_containers_own_layer_is_short_lived_and_the_fix_names_the_volume(world: World) -> None:
    found = short_lived(STATE, world(LAYER, OWN_FILES, TMP))
    assert found is not None
    assert found.certain
    assert "own layer" in found.reason
    assert "-v shipper-state:/var/lib/shipper" in found.fix


@pytest.mark.parametrize("mark", [".dockerenv", "run/.containerenv"])
def test_an_engine_that_hides_the_id_is_known_by_its_mark(world: World, mark: str) -> None:
    found = short_lived(STATE, world(LAYER, mark=mark))
    assert found is not None
    assert found.certain


@pytest.mark.parametrize("kind", ["btrfs", "zfs", "ext4"])
def test_a_storage_driver_without_layers_is_known_by_the_id(world: World, kind: str) -> None:
    root = f"600 500 0:60 /snap / rw - {kind} pool rw"
    found = short_lived(STATE, world(root, OWN_FILES))
    assert found is not None
    assert "own layer" in found.reason


def test_memory_in_a_container_is_short_lived(world: World) -> None:
    found = short_lived(Path("/tmp/state"), world(LAYER, OWN_FILES, TMP))
    assert found is not None
    assert found.certain
    assert "tmpfs at /tmp" in found.reason


def test_a_named_volume_and_a_bind_mount_are_lasting(world: World) -> None:
    root = world(LAYER, OWN_FILES, volume("shipper-state"), r"621 600 254:0 /srv /with\040blank rw - ext4 /dev/vda rw")
    assert short_lived(STATE, root) is None
    assert short_lived(STATE / "deeper", root) is None
    assert short_lived(Path("/with blank/state"), root) is None
    assert short_lived(Path("/var/lib/shipper-other"), root) is not None


def test_a_volume_without_a_name_is_doubtful_only(world: World) -> None:
    found = short_lived(STATE, world(LAYER, OWN_FILES, volume("ab" * 32)))
    assert found is not None
    assert not found.certain
    assert "without a name" in found.reason


def test_of_two_mounts_on_one_place_the_later_counts(world: World) -> None:
    found = short_lived(STATE, world(LAYER, OWN_FILES, volume("shipper-state"), volume("x", kind="tmpfs")))
    assert found is not None
    assert "in memory" in found.reason


def test_a_machine_is_lasting_also_one_made_from_an_image(world: World) -> None:
    """Virtual machines that were filled from an image carry Docker's mark on an ordinary disk."""
    assert short_lived(STATE, world(DISK, mark=".dockerenv")) is None


def test_memory_of_a_machine_is_doubtful_only(world: World) -> None:
    found = short_lived(Path("/run/shipper"), world(DISK, "23 27 0:26 / /run rw - tmpfs tmpfs rw"))
    assert found is not None
    assert not found.certain
    assert "machine restarts" in found.reason


def test_without_mountinfo_nothing_is_claimed(tmp_path: Path) -> None:
    assert short_lived(STATE, tmp_path) is None


def test_a_wrong_override_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the only value is allow"):
        require_lasting(tmp_path, {OVERRIDE: "yes"})


def test_the_daemon_warns_of_a_doubtful_directory_and_runs(tmp_path: Path) -> None:
    """/dev/shm is memory on every Linux; a daemon on a machine may have its state there."""
    with TemporaryDirectory(dir="/dev/shm") as state:
        daemon = Daemon(
            tmp_path,
            {
                "state_dir": state,
                "sources": {"app": {"type": "file", "include": [str(tmp_path / "*.log")]}},
                "sinks": {"none": {"type": "blackhole"}},
            },
        )
        assert daemon.once().code == 0
    assert "is in memory (tmpfs at /dev/shm)" in daemon.log


def test_the_demo_names_the_command_that_works_where_it_runs(world: World) -> None:
    root = world(LAYER, OWN_FILES)
    assert run_line(Path("c.yaml"), STATE, root) == "SHIPPER_TEMPORARY_STATE=allow shipper run --config c.yaml"
    (root / "proc/self/mountinfo").write_text(DISK + "\n")
    assert run_line(Path("c.yaml"), STATE, root) == "shipper run --config c.yaml"
