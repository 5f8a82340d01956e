"""The ledger: what is safe for whom, and what a restart begins with."""

from __future__ import annotations

import os
import sqlite3
import stat
from pathlib import Path

import pytest

from shipper.clock import SystemClock
from shipper.errors import StateError
from shipper.record import Span
from shipper.source import FileState
from shipper.state.checkpoint import Checkpoint
from shipper.state.ledger import Ledger


def file_state(path: str = "/a.log") -> FileState:
    return FileState(
        key=0, source="docker", path=path, device=1, inode=2**63 + 5, uid="u", head=2**64 - 1, head_size=10, size=100
    )


def open_ledger(state_dir: Path, *sinks: str) -> Ledger:
    return Ledger(Checkpoint(state_dir), sinks, SystemClock())


def test_offset_moves_only_over_what_is_contiguous(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path, "a")
    key = ledger.add(file_state()).key
    ledger.done("a", [Span(key, 20, 30, 3)])
    assert ledger.safe(key) == 0
    ledger.done("a", [Span(key, 0, 10, 1)])
    assert ledger.safe(key) == 10
    ledger.done("a", [Span(key, 10, 20, 2)])
    assert ledger.safe(key) == 30
    ledger.close()


def test_safe_is_the_slowest_sink_and_each_sink_has_its_own_offset(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path, "a", "b")
    key = ledger.add(file_state()).key
    ledger.done("a", [Span(key, 0, 50, 1)])
    assert (ledger.offset(key, "a"), ledger.offset(key, "b"), ledger.safe(key)) == (50, 0, 0)
    ledger.close()


def test_restart_begins_at_the_lowest_offset_with_its_marker(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path, "a", "b")
    key = ledger.add(file_state()).key
    ledger.done("a", [Span(key, 0, 50, 2**64 - 7)])
    ledger.done("b", [Span(key, 0, 20, 99)])
    ledger.close()
    again = open_ledger(tmp_path, "a", "b")
    (state,) = again.files("docker")
    assert (state.offset, state.marker, state.inode, state.head) == (20, 99, 2**63 + 5, 2**64 - 1)
    assert (again.offset(key, "a"), again.offset(key, "b")) == (50, 20)
    again.close()


def test_what_was_not_saved_is_forgotten(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path, "a")
    key = ledger.add(file_state()).key
    ledger.done("a", [Span(key, 0, 10, 1)])
    assert ledger.save()
    ledger.done("a", [Span(key, 10, 20, 1)])
    ledger._checkpoint.close()  # a kill: no save
    again = open_ledger(tmp_path, "a")
    assert again.offset(key, "a") == 10
    again.close()


def test_new_sink_starts_where_the_file_stands_and_a_removed_one_holds_nothing_back(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path, "old")
    key = ledger.add(file_state()).key
    ledger.done("old", [Span(key, 0, 40, 4)])
    ledger.close()
    switched = open_ledger(tmp_path, "new")
    assert switched.offset(key, "new") == 40
    switched.done("new", [Span(key, 40, 90, 9)])
    assert switched.safe(key) == 90
    switched.close()
    back = open_ledger(tmp_path, "old")
    assert back.offset(key, "old") == 90, "what went to the other sink meanwhile is not sent again"
    back.close()


def test_sink_position_is_saved_with_the_offsets(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path, "a")
    key = ledger.add(file_state()).key
    ledger.done("a", [Span(key, 0, 40, 4)], position="12:400")
    ledger.spill_cursor("a", 3, 77)
    ledger.close()
    again = open_ledger(tmp_path, "a")
    state = again.sink_state("a")
    assert (state.position, state.segment, state.offset) == ("12:400", 3, 77)
    again.close()


def test_anchors_survive_a_kill_and_go_when_they_are_passed(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path, "a")
    key = ledger.add(file_state()).key
    ledger.anchor(key, 0, 10, 111)
    ledger.anchor(key, 10, 30, 222)
    ledger._checkpoint.close()  # a kill
    again = open_ledger(tmp_path, "a")
    assert again.anchors(key) == [(0, 10, 111), (10, 30, 222)]
    again.done("a", [Span(key, 0, 10, 1)])
    again.close()
    last = open_ledger(tmp_path, "a")
    assert last.anchors(key) == [(10, 30, 222)]
    last.close()


def test_a_save_that_ids_rest_on_is_synced_and_no_other(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path)
    ledger = Ledger(checkpoint, ["a"], SystemClock())
    key = ledger.add(file_state()).key
    said: list[str] = []
    checkpoint._db.set_trace_callback(said.append)
    ledger.save()
    assert [text for text in said if "synchronous" in text] == []
    ledger.anchor(key, 0, 10, 111)
    checkpoint._db.set_trace_callback(None)
    order = [text for text in said if "synchronous" in text or text == "COMMIT"]
    assert order[-3:] == ["PRAGMA synchronous = FULL", "COMMIT", "PRAGMA synchronous = NORMAL"]
    assert checkpoint._db.execute("PRAGMA synchronous").fetchone() == (1,)
    ledger.close()


def test_what_is_given_up_is_kept_through_restarts(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path, "a")
    ledger.give_up("a", "too_old", 3)
    ledger.save()
    ledger.give_up("a", "too_old", 4)
    ledger.give_up("b", "spill_full", 1)
    assert ledger.given_up("a") == {"too_old": 7}
    ledger.close()
    again = open_ledger(tmp_path, "a")
    again.give_up("a", "spill_damaged", 5)
    assert again.given_up("a") == {"too_old": 7, "spill_damaged": 5}
    assert again.given_up("b") == {"spill_full": 1}
    again.close()


def test_when_a_file_was_first_seen_survives_restarts_and_updates(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path, "a")
    state = ledger.add(file_state())
    seen = ledger.seen(state.key)
    assert seen
    ledger.save()
    state.path = "/a.log.1"
    ledger.update(state)
    ledger.close()
    again = open_ledger(tmp_path, "a")
    assert again.seen(state.key) == seen
    assert again.files("docker")[0].path == "/a.log.1"
    again.close()


def test_losses_are_kept_and_told(tmp_path: Path) -> None:
    told: list[tuple[str, int]] = []
    checkpoint = Checkpoint(tmp_path)
    ledger = Ledger(checkpoint, ["a"], SystemClock(), on_lost=lambda cause, size: told.append((cause, size)))
    state = ledger.add(file_state("/x.log"))
    ledger.lost(state, 5, 25, "truncated")
    ledger.save()
    assert told == [("truncated", 20)]
    (loss,) = checkpoint.losses()
    assert (loss.path, loss.start, loss.end, loss.cause) == ("/x.log", 5, 25, "truncated")
    ledger.close()


def test_forgotten_file_leaves_nothing_behind(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path, "a")
    key = ledger.add(file_state()).key
    ledger.anchor(key, 0, 10, 111)
    ledger.forget(key)
    ledger.done("a", [Span(key, 0, 10, 1)])
    ledger.close()
    db = sqlite3.connect(tmp_path / "state.db")
    counts = [db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("files", "offsets", "anchors")]
    db.close()
    assert counts == [0, 0, 0]


def test_two_daemons_cannot_share_a_state_directory(tmp_path: Path) -> None:
    first = Checkpoint(tmp_path)
    with pytest.raises(StateError, match="is in use by another shipper"):
        Checkpoint(tmp_path)
    first.close()
    Checkpoint(tmp_path).close()


def test_state_directory_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="cannot use the state directory"):
        Checkpoint(tmp_path / "file" / "state")


def test_damaged_database_is_set_aside(tmp_path: Path) -> None:
    open_ledger(tmp_path, "a").close()
    (tmp_path / "state.db").write_bytes(b"this is not a database, and long enough to be read as one" * 40)
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.damaged is not None
    assert checkpoint.damaged.read_bytes().startswith(b"this is not")
    assert checkpoint.files() == []
    checkpoint.close()


@pytest.mark.parametrize("umask", [0o000, 0o022])
def test_state_is_for_this_user_alone_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    """Also one that an earlier version made readable to others."""
    before = os.umask(umask)
    try:
        checkpoint = Checkpoint(tmp_path / "state")
    finally:
        os.umask(before)
    names = ("state.db", "state.db-wal", "state.db-shm", "lock")
    modes = {name: stat.S_IMODE((tmp_path / "state" / name).stat().st_mode) for name in names}
    assert modes == dict.fromkeys(names, 0o600)
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
    checkpoint.close()
    (tmp_path / "state" / "state.db").chmod(0o644)
    Checkpoint(tmp_path / "state").close()
    assert stat.S_IMODE((tmp_path / "state" / "state.db").stat().st_mode) == 0o600


def test_state_that_is_no_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "state.db").mkdir()
    with pytest.raises(StateError, match=r"cannot open .*state\.db: Is a directory"):
        Checkpoint(tmp_path)
    (tmp_path / "state.db").rmdir()
    Checkpoint(tmp_path).close()
