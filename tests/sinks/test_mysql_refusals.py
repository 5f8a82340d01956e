"""What constraints, triggers and keys of the user's own have against a row costs that row, and no repeat is taken for one."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pymysql
import pytest

from shipper.errors import ParkedError, PartialError, PermanentError
from shipper.record import Batch
from shipper.testing.batches import START_NS, make_batch
from shipper.testing.rig import Rig
from sinks.mysql import MysqlConfig, MysqlSink, faults
from support.logs_database import LogsDatabase
from support.mariadb import MariaDB

pytestmark = pytest.mark.mariadb

LOADS = pytest.mark.parametrize("load", [False, True], ids=["insert", "load"])


@pytest.fixture
def database(mariadb: MariaDB) -> Iterator[LogsDatabase]:
    database = LogsDatabase(mariadb)
    ((before,),) = mariadb.execute("SELECT @@local_infile")
    mariadb.execute("SET GLOBAL local_infile = 1")
    yield database
    database.drop()
    mariadb.execute(f"SET GLOBAL local_infile = {before}")


def _sink(database: LogsDatabase, **options: Any) -> MysqlSink:
    return MysqlSink(MysqlConfig(**database.sink(**options)))


def _made(database: LogsDatabase, *statements: str) -> None:
    """Make our table, then what its user added."""
    sink = _sink(database)
    sink.open()
    sink.close()
    database.execute(*statements)


def _delivered(database: LogsDatabase, directory: Path, *batches: Batch, **options: Any) -> Rig:
    rig = Rig(directory, _sink(database, **options))
    for batch in batches:
        rig.put("/var/log/app", batch)
    rig.run()
    return rig


LOGINS = [
    {"user_id": "7", "action": "login"},
    {"user_id": "7", "action": "login"},
    {"user_id": "7", "action": "logout"},
]
UNIQUE = "ALTER TABLE activity_logs ADD UNIQUE KEY one_login (user_id, action)"


@LOADS
@pytest.mark.parametrize("key", ["ours", "first"])
def test_row_that_meets_a_unique_key_of_the_users_is_dead_lettered_and_repeats_are_not(
    database: LogsDatabase, tmp_path: Path, load: bool, key: str
) -> None:
    _made(database, UNIQUE)
    if key == "first":  # a repeat then meets the user's key before that of its id
        database.execute(
            "ALTER TABLE activity_logs DROP PRIMARY KEY, ADD COLUMN seq INT AUTO_INCREMENT PRIMARY KEY FIRST,"
            " ADD UNIQUE KEY zz (id)"
        )
    batch = make_batch(["login 1", "login 2", "logout"], attributes=LOGINS)
    for name in ("first", "again"):
        rig = _delivered(database, tmp_path / name, batch, load_data=load)
        (letter,) = rig.dead()
        assert letter.message == "login 2"
        assert "one_login" in letter.reason
        assert rig.waits == []
        assert rig.safe()
        rig.close()
    assert sorted(database.messages()) == ["login 1", "logout"]


@LOADS
def test_many_such_rows_in_one_batch_do_not_put_the_table_under_suspicion(
    database: LogsDatabase, tmp_path: Path, load: bool
) -> None:
    _made(database, UNIQUE)
    attributes = [{"user_id": str(number // 2), "action": "login"} for number in range(3000)]
    batch = make_batch([str(number) for number in range(3000)], attributes=attributes)
    for name in ("first", "again"):
        rig = _delivered(database, tmp_path / name, batch, load_data=load)
        assert (len(rig.dead()), rig.waits, database.count()) == (1500, [], 1500)
        rig.close()


@LOADS
def test_repeats_among_new_rows_are_told_from_other_duplicates(database: LogsDatabase, load: bool) -> None:
    _made(database, UNIQUE)
    attributes = [{"user_id": str(number), "action": "login"} for number in range(2000)]
    batch = make_batch([str(number) for number in range(2000)], attributes=attributes)
    sink = _sink(database, load_data=load)
    sink.open()
    sink.write(batch.select(range(0, 2000, 3)))
    more = make_batch(["second login"], attributes={"user_id": "1999", "action": "login"}, start_ns=START_NS + 10**13)
    sink.write(batch)
    with pytest.raises(PartialError) as caught:
        sink.write(Batch.concat([batch, more]))
    sink.close()
    assert list(caught.value.failed) == [2000]
    assert caught.value.failed[2000].code == "1062"
    assert database.count() == 2000


@LOADS
def test_account_that_may_only_insert_tells_repeats_by_the_name_of_the_key(database: LogsDatabase, load: bool) -> None:
    _made(database, UNIQUE)
    name = f"u{uuid.uuid4().hex[:10]}"
    database.execute(
        f"CREATE USER '{name}'@'%' IDENTIFIED BY 'p'",
        f"GRANT INSERT ON activity_logs TO '{name}'@'%'",
        f"GRANT INSERT ON activity_logs_resources TO '{name}'@'%'",
    )
    sink = _sink(database, load_data=load, user=name, password="p")
    batch = make_batch(["login 1", "login 2", "logout"], attributes=LOGINS)
    sink.open()
    for _ in range(2):
        with pytest.raises(PartialError) as caught:
            sink.write(batch)
        assert {index: error.code for index, error in caught.value.failed.items()} == {1: "1062"}
    sink.close()
    database.execute(f"DROP USER '{name}'@'%'")
    assert sorted(database.messages()) == ["login 1", "logout"]


def test_value_that_names_our_key_passes_for_no_repeat(database: LogsDatabase) -> None:
    """A message of the server's holds the value: whoever writes the line writes a part of it."""
    _made(database, "ALTER TABLE activity_logs ADD UNIQUE KEY u (user_id)")
    batch = make_batch(["a", "b"])
    hostile = f"{batch.ids[1]}' for key 'PRIMARY'"
    batch.attributes = [{"user_id": hostile}, {"user_id": hostile}]
    for load in (False, True):
        sink = _sink(database, load_data=load)
        sink.open()
        with pytest.raises(PartialError) as caught:
            sink.write(batch)
        sink.close()
        assert list(caught.value.failed) == [1]


FOREIGN_KEY = (
    "CREATE TABLE users (id VARCHAR(255) PRIMARY KEY) CHARSET utf8mb4 COLLATE utf8mb4_bin",
    "INSERT INTO users VALUES ('1'), ('2')",
    "ALTER TABLE activity_logs ADD FOREIGN KEY (user_id) REFERENCES users (id)",
)


def _trigger(body: str) -> str:
    return f"CREATE TRIGGER t BEFORE INSERT ON activity_logs FOR EACH ROW {body}"


BAD = "IF NEW.user_id = '99' THEN {} END IF"


@LOADS
@pytest.mark.parametrize(
    ("statements", "code"),
    [
        (FOREIGN_KEY, "1452"),
        ((_trigger(BAD.format("SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'no such user';")),), "1644"),
        ((_trigger(BAD.format("SIGNAL SQLSTATE '23001' SET MESSAGE_TEXT = 'no';")),), "1644"),
        ((_trigger(BAD.format("SIGNAL SQLSTATE '45000' SET MYSQL_ERRNO = 1205, MESSAGE_TEXT = 'no';")),), "1205"),
        ((_trigger(BAD.format("SIGNAL SQLSTATE '45000' SET MYSQL_ERRNO = 40000, MESSAGE_TEXT = 'no';")),), "40000"),
        (("ALTER TABLE activity_logs ADD CONSTRAINT c CHECK (user_id <> '99')",), ""),
        (
            (
                "CREATE TABLE seen (id INT PRIMARY KEY)",
                "INSERT INTO seen VALUES (1)",
                _trigger(BAD.format("INSERT INTO seen VALUES (1);")),
            ),
            "1062",
        ),
        ((_trigger(BAD.format("SET NEW.action = REPEAT('x', 300);")),), "1406"),
    ],
    ids=["foreign key", "signal", "signal 23", "signal 1205", "signal 40000", "check", "duplicate elsewhere", "too long"],
)  # fmt: skip
def test_row_that_the_database_refuses_is_dead_lettered_alone(
    database: LogsDatabase, tmp_path: Path, load: bool, statements: tuple[str, ...], code: str
) -> None:
    _made(database, *statements)
    batch = make_batch(["known", "unknown user", "no user"], attributes=[{"user_id": "1"}, {"user_id": "99"}, {}])
    rig = _delivered(database, tmp_path, batch, load_data=load)
    assert [letter.message for letter in rig.dead()] == ["unknown user"]
    if code:
        assert f"({code})" in rig.dead()[0].reason
    assert rig.waits == []
    assert rig.safe()
    assert database.messages() == ["known", "no user"]
    rig.close()


@LOADS
def test_what_hits_every_row_parks_the_sink_and_loses_none(database: LogsDatabase, tmp_path: Path, load: bool) -> None:
    _made(database, _trigger("SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'closed'"))
    rig = Rig(tmp_path, _sink(database, load_data=load))
    rig.put("/var/log/app", make_batch([str(number) for number in range(100)]))
    rig.clock.at(1.0, lambda: database.execute("DROP TRIGGER t"))
    rig.run()
    assert "parked" in rig.states
    assert rig.dead() == []
    assert database.count() == 100
    rig.close()


@pytest.mark.parametrize(
    ("number", "state", "kind"),
    [
        (9999, "22018", PermanentError), (9999, "23505", PermanentError), (9999, "45123", PermanentError),
        (1364, "HY000", ParkedError), (1709, "HY000", ParkedError), (1449, "HY000", ParkedError),
        (1118, "42000", PermanentError), (1062, "23000", PermanentError), (1452, "23000", PermanentError),
    ],
)  # fmt: skip
def test_errors_are_sorted_by_their_class(number: int, state: str, kind: type[Exception]) -> None:
    told = faults.sorted_error(pymysql.err.OperationalError(number, "text", sqlstate=state), "mysql here:3306")
    assert type(told) is kind
