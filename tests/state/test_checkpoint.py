"""The state database in bad company: emptied, gone, of another version, with what nobody wrote, busy, or public."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from shipper.clock import SystemClock
from shipper.errors import StateError
from shipper.record import Span
from shipper.source import FileState
from shipper.state.checkpoint import Checkpoint, Cursor, spill_cursor
from shipper.state.ledger import Ledger


def begin(directory: Path) -> int:
    """Leave a state with one file, 40 bytes of it safe; give the file's key."""
    ledger = Ledger(Checkpoint(directory), ["a"], SystemClock())
    state = FileState(key=0, source="s", path="/a.log", device=1, inode=2, uid="u", head=3, head_size=4, size=100)
    key = ledger.add(state).key
    ledger.done("a", [Span(key, 0, 40, 7)], position="1:2")
    ledger.spill_cursor("a", 3, 77, 1_000)
    ledger.close()
    return key


def edit(directory: Path, statement: str) -> None:
    with closing(sqlite3.connect(directory / "state.db")) as db:
        db.execute(statement)
        db.commit()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE offsets SET offset = 'far'",
        "UPDATE offsets SET marker = x'00'",
        "UPDATE offsets SET offset = 1.5",
        "UPDATE offsets SET offset = -1",
        "UPDATE files SET inode = 'x'",
        "UPDATE files SET path = x'ff'",
        "UPDATE sinks SET segment = 'x'",
        "INSERT INTO anchors VALUES ('x', 0, 1, 2)",
        "INSERT INTO losses VALUES ('x', 'p', 1, 2, 'c')",
        "INSERT INTO given_up VALUES ('a', 'r', 'many', 1, 1)",
        "DROP TABLE offsets",
        "ALTER TABLE offsets RENAME COLUMN marker TO other",
    ],
)
def test_what_we_never_write_is_set_aside_and_ends_no_start(tmp_path: Path, statement: str) -> None:
    begin(tmp_path)
    edit(tmp_path, statement)
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.damaged is not None
    assert checkpoint.damaged.exists()
    ledger = Ledger(checkpoint, ["a"], SystemClock())
    assert ledger.files("s") == []
    ledger.close()
    again = Checkpoint(tmp_path)
    assert again.damaged is None
    again.close()


def test_an_emptied_database_is_no_new_one(tmp_path: Path) -> None:
    begin(tmp_path)
    (tmp_path / "state.db").write_bytes(b"")
    (tmp_path / "state.db-wal").write_bytes(b"what may still be read by hand")
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.damaged is not None
    assert checkpoint.damaged.stat().st_size == 0
    kept = checkpoint.damaged.with_name(checkpoint.damaged.name + "-wal")
    assert kept.read_bytes() == b"what may still be read by hand"
    checkpoint.close()


@pytest.mark.parametrize("left", ["spill/x/0000000000000001.seg", "dead-letter/x.jsonl", "state.db-wal"])
def test_a_state_that_is_gone_is_told_from_a_new_one(tmp_path: Path, left: str) -> None:
    (tmp_path / left).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / left).write_bytes(b"x")
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.missing
    checkpoint.close()
    again = Checkpoint(tmp_path)
    assert not again.missing
    again.close()


def test_a_new_directory_is_new(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "state")
    assert not checkpoint.missing
    assert checkpoint.damaged is None
    checkpoint.close()


def test_a_database_that_is_busy_is_not_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(tmp_path)
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **kwargs: connect(*args, **{**kwargs, "timeout": 0}))
    with closing(connect(tmp_path / "state.db", isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StateError, match="locked"):
            Checkpoint(tmp_path)
        other.execute("ROLLBACK")
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.damaged is None
    assert len(checkpoint.files()) == 1
    checkpoint.close()


def test_a_database_of_version_1_is_taken_over(tmp_path: Path) -> None:
    key = begin(tmp_path)
    with closing(sqlite3.connect(tmp_path / "state.db")) as db:
        db.execute("ALTER TABLE files DROP COLUMN seen")
        db.execute("ALTER TABLE sinks DROP COLUMN record")
        db.execute("DROP TABLE given_up")
        db.execute("PRAGMA user_version = 1")
        db.commit()
    ledger = Ledger(Checkpoint(tmp_path), ["a"], SystemClock())
    assert ledger.offset(key, "a") == 40
    assert ledger.seen(key) == 0, "nothing of it is ever passed over"
    state = ledger.sink_state("a")
    assert (state.segment, state.offset, state.record) == (3, 77, -1)
    ledger.close()


def test_a_database_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    begin(tmp_path)
    edit(tmp_path, "PRAGMA user_version = 3")
    before = (tmp_path / "state.db").read_bytes()
    with pytest.raises(StateError, match=r"newer shipper.*or set state_dir"):
        Checkpoint(tmp_path)
    assert (tmp_path / "state.db").read_bytes() == before


def test_the_place_in_a_spill_can_be_read_beside_a_daemon(tmp_path: Path) -> None:
    begin(tmp_path)
    daemon = Checkpoint(tmp_path)
    assert spill_cursor(tmp_path, "a") == Cursor(3, 77, 1_000)
    assert spill_cursor(tmp_path, "other") == Cursor(0, 0)
    daemon.close()


def test_all_of_the_state_is_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        checkpoint = Checkpoint(tmp_path / "state")
        ledger = Ledger(checkpoint, ["a"], SystemClock())
        ledger.spill_cursor("a", 1, 2)
        ledger.save()
        modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "state").iterdir()}
        ledger.close()
    finally:
        os.umask(before)
    assert modes == dict.fromkeys(["lock", "state.db", "state.db-wal", "state.db-shm"], 0o600)
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
