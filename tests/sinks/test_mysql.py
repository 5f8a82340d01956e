"""The MySQL sink and its reader, against a real MariaDB server."""

from __future__ import annotations

import json
import socket
import sys
import threading
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pymysql
import pytest

from shipper.errors import ParkedError, PartialError, PermanentError, RetryableError
from shipper.reader import Query
from shipper.record import Batch, Record, Resource
from shipper.routing.condition import compile_condition
from shipper.sink import Sink
from shipper.testing.batches import START_NS, make_batch, make_resource
from shipper.testing.proxy import FaultProxy
from shipper.testing.sink_contract import SinkContract
from sinks.mysql import MysqlConfig, MysqlReader, MysqlSink, faults, session
from support.certificates import Authority
from support.daemon import eventually
from support.logs_database import LogsDatabase
from support.mariadb import MariaDB

pytestmark = pytest.mark.mariadb

NAMES = [
    "id", "level", "message", "details", "user_id", "action", "ip_address", "user_agent", "created_at",
    "service", "container", "stream", "host", "source",
]  # fmt: skip
DAY = 86_400
BACKEND = (
    "INSERT INTO activity_logs (id, level, message, details, user_id, action, ip_address, user_agent, created_at)"
    " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, NOW())"
)


@pytest.fixture
def database(mariadb: MariaDB) -> Iterator[LogsDatabase]:
    database = LogsDatabase(mariadb)
    ((before,),) = mariadb.execute("SELECT @@local_infile")
    mariadb.execute("SET GLOBAL local_infile = 1")  # MySQL's default is 0
    yield database
    mariadb.execute(f"SET GLOBAL local_infile = {before}")
    database.drop()


def _config(database: LogsDatabase, **options: Any) -> MysqlConfig:
    return MysqlConfig(**database.sink(**{"load_data": False, **options}))


def _read(config: MysqlConfig, **query: Any) -> list[Record]:
    reader = MysqlReader(config)
    try:
        return list(reader.read(Query(**query)))
    finally:
        reader.close()


def _selected(database: LogsDatabase) -> list[str]:
    """The columns that the application sees."""
    connection = database.server.connect(database=database.name)
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT * FROM activity_logs")
        return [column[0] for column in cursor.description]


def _opened(config: MysqlConfig, **options: Any) -> MysqlSink:
    sink = MysqlSink(config, **options)
    sink.open()
    return sink


@pytest.fixture
def sink(database: LogsDatabase) -> Iterator[MysqlSink]:
    sink = _opened(_config(database))
    yield sink
    sink.close()


class _Contract(SinkContract):
    exactly_once = True
    example = Path("config/examples/mysql.yaml")
    load = False

    @pytest.fixture(autouse=True)
    def _place(self, database: LogsDatabase) -> None:
        self.database = database

    def make_sink(self, tmp_path: Path) -> Sink:
        return MysqlSink(_config(self.database, load_data=self.load))

    def read_back(self, sink: Sink) -> list[Record]:
        return _read(_config(self.database), oldest_first=True)

    def order_key(self, record: Record) -> Any:
        return record.time_ns, record.id


class TestMysqlInsert(_Contract):
    pass


class TestMysqlLoadData(_Contract):
    load = True


# The table, and the application beside us


def test_table_has_the_promised_columns_key_and_collation(database: LogsDatabase, sink: MysqlSink) -> None:
    columns = database.execute(
        "SELECT COLUMN_NAME FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = DATABASE()"
        " AND TABLE_NAME = 'activity_logs' ORDER BY ORDINAL_POSITION"
    )
    assert [row[0] for row in columns] == [*NAMES, "shipper"]
    assert _selected(database) == NAMES
    ((_, ddl),) = database.execute("SHOW CREATE TABLE activity_logs")
    (marker,) = [line for line in ddl.splitlines() if "`shipper`" in line]
    assert "INVISIBLE" in marker
    assert "varchar(255)" in marker
    key = database.execute("SHOW INDEX FROM activity_logs WHERE Key_name = 'PRIMARY'")
    assert [row[4] for row in key] == ["created_at", "id"]
    (table,) = database.execute("SHOW TABLE STATUS LIKE 'activity_logs'")
    assert "utf8mb4_bin" in table


@pytest.mark.parametrize("partition", ["none", "day"])
def test_backend_inserts_and_lists_as_it_always_did(database: LogsDatabase, partition: str) -> None:
    sink = _opened(_config(database, partition=partition))
    attributes = {"user_id": 7, "action": "login"}
    sink.write(make_batch([f"line {i}" for i in range(50)], level="error", attributes=attributes))
    connection = database.server.connect(database=database.name, cursorclass=pymysql.cursors.DictCursor)
    with connection, connection.cursor() as cursor:
        own = str(uuid.uuid4())
        cursor.execute(BACKEND, (own, "error", "own", json.dumps({"a": 1}), "7", "login", "::1", "node"))
        cursor.execute(BACKEND, (str(uuid.uuid4()), "warn", None, None, None, None, None, None))
        cursor.execute("INSERT INTO activity_logs (id, level, message) VALUES ('17', 'info', 'short')")
        cursor.execute("INSERT INTO activity_logs (message) VALUES ('no id')")
        cursor.execute(
            "SELECT * FROM activity_logs WHERE level=%s AND action=%s AND user_id=%s"
            " ORDER BY created_at DESC LIMIT %s OFFSET %s",
            ("error", "login", "7", 10, 0),
        )
        rows = cursor.fetchall()
    assert len(rows) == 10
    assert rows[0]["id"] == own
    assert rows[1]["message"] == "line 49"
    sink.close()
    found = {record.message: record for record in _read(_config(database))}
    assert found["own"].attributes == {
        "a": 1, "user_id": "7", "action": "login", "ip_address": "::1", "user_agent": "node",
    }  # fmt: skip
    assert len(found["no id"].id) == 36


@pytest.mark.parametrize(
    ("where", "values"),
    [
        ("level=%s AND action=%s AND user_id=%s", ("error", "a3", "u3")),
        ("user_id=%s", ("u3",)),
        ("action=%s", ("a3",)),
        ("level=%s", ("fatal",)),
        ("1=1 OR %s", (1,)),
    ],
)
def test_lists_of_the_backend_use_an_index(
    mariadb: MariaDB, database: LogsDatabase, sink: MysqlSink, where: str, values: tuple[Any, ...]
) -> None:
    attributes = [{"user_id": f"u{i % 200}", "action": f"a{i % 20}"} for i in range(4000)]
    sink.write(make_batch(["x"] * 4000, attributes=attributes, level=["info"] * 3990 + ["fatal"] * 10))
    database.execute("ANALYZE TABLE activity_logs")
    connection = database.server.connect(database=database.name, charset="utf8mb4")
    with connection, connection.cursor(pymysql.cursors.DictCursor) as cursor:
        if not mariadb.is_mariadb():
            cursor.execute("SET explain_format = TRADITIONAL")
        cursor.execute(
            f"EXPLAIN SELECT * FROM activity_logs WHERE {where} ORDER BY created_at DESC LIMIT 20 OFFSET 0", values
        )
        (plan,) = cursor.fetchall()
    assert plan["key"] is not None
    assert int(plan["rows"]) < 1000
    if where.count("=") == 1:
        assert "filesort" not in (plan["Extra"] or "")


def test_without_create_table_the_statement_to_run_is_told_and_works(database: LogsDatabase) -> None:
    config = _config(database, create_table=False, partition="day")
    with pytest.raises(ParkedError) as caught:
        _opened(config)
    statements = str(caught.value).split("run\n", 1)[1].rstrip(";").split(";\n")
    database.execute(*statements)
    sink = _opened(config)
    sink.write(make_batch(["x"]))
    sink.close()
    assert database.count() == 1


def test_a_replay_larger_than_the_servers_list_of_warnings_is_stored_once(
    mariadb: MariaDB, database: LogsDatabase
) -> None:
    """An account of MySQL's may not make the list longer; what the list does not show must not be believed."""
    sink = _opened(_config(database, load_data=True))
    batch = make_batch([f"line {index}" for index in range(1_100)])
    sink.write(batch)
    assert sink._session is not None
    if mariadb.is_mariadb():
        sink._session.query("SET max_error_count = 64")
    more = make_batch(["one more"], start_ns=START_NS + 10**12)
    sink.write(Batch.concat([batch, more]))
    sink.close()
    assert database.count() == 1_101


@pytest.mark.parametrize("load", [False, True])
def test_details_are_what_the_backend_would_write_and_the_marker_is_hidden(database: LogsDatabase, load: bool) -> None:
    cases: list[dict[str, Any]] = [
        {"id": "f-1", "service": "api", "timestamp": "t", "user_id": 7, "details": {"fail_id": 1}},
        {"details": {"id": 1}, "id": 2},
        {"action": "login"},
    ]
    bare = Resource("docker", {"service.name": "api"})
    sink = _opened(_config(database, load_data=load))
    sink.write(make_batch(["x"] * 3, attributes=cases, resource=bare, step_ns=1_000_000))
    sink.close()
    assert [(details and json.loads(details), marker) for details, marker in database.rows("details, shipper")] == [
        ({"fail_id": 1, "id": "f-1", "service": "api", "timestamp": "t"}, "0,,user_id,+id,service,timestamp"),
        ({"details": {"id": 1}, "id": 2}, None),
        (None, None),
    ]
    assert [record.attributes for record in _read(_config(database), oldest_first=True)] == cases


@pytest.mark.parametrize("load", [False, True])
@pytest.mark.parametrize("create", [False, True])
def test_table_without_the_marker_serves_on_where_it_cannot_be_added(
    database: LogsDatabase, load: bool, create: bool, caplog: pytest.LogCaptureFixture
) -> None:
    _opened(_config(database)).close()
    database.execute("ALTER TABLE activity_logs DROP COLUMN shipper")
    account = _account(database, "INSERT, SELECT ON activity_logs", "INSERT, SELECT ON activity_logs_resources")
    config = _config(database, load_data=load, create_table=create, **account)
    sink = _opened(config)
    attributes = {"user_id": 7, "details": {"fail_id": 1}, "id": 2}
    sink.write(make_batch(["x"], attributes=attributes, start_ns=START_NS + 5))
    sink.open()
    sink.write(make_batch(["x"], attributes=attributes, start_ns=START_NS + 5))
    sink.close()
    (record,) = _read(config)
    database.execute(f"DROP USER '{account['user']}'@'%'")
    assert caplog.text.count("has no column shipper") == 1
    assert (record.time_ns, record.message, record.level) == (START_NS, "x", "info")
    assert record.attributes == {**attributes, "user_id": "7"}
    (statement,) = (message for message in caplog.messages if "has no column shipper" in message)
    database.execute(statement.partition("run ")[2])
    assert _selected(database) == NAMES


# Values


@pytest.mark.parametrize("load", [False, True])
@pytest.mark.parametrize(("column", "width"), [("user_id", 255), ("ip_address", 64), ("user_agent", 1024)])
def test_value_at_the_limit_has_its_column_and_one_above_stays_whole(
    database: LogsDatabase, load: bool, column: str, width: int
) -> None:
    sink = _opened(_config(database, load_data=load))
    values = ["ß" * (width - 1), "\U0001f600" * width, "é" * (width + 1)]
    sink.write(make_batch(["a", "b", "c"], attributes=[{column: value} for value in values]))
    sink.close()
    assert [row[0] for row in database.rows(column)] == [*values[:2], None]
    assert [record.attributes[column] for record in _read(_config(database), oldest_first=True)] == values


def test_long_name_of_a_service_is_a_marked_prefix_and_comes_back_whole(
    database: LogsDatabase, sink: MysqlSink
) -> None:
    resource = make_resource("s" * 300)
    sink.write(make_batch(["x"], resource=resource))
    assert database.rows("service") == [("s" * 254 + "…",)]
    assert _read(_config(database))[0].resource.attributes == resource.attributes


@pytest.mark.parametrize("load", [False, True])
def test_separators_of_every_format_are_only_text(database: LogsDatabase, load: bool) -> None:
    texts = ["\x1c", "\x1d", "\x1e", "\x1cN", "\\N", "\\", "'", '"', "a\tb\nc\r\0\x1a", "\x1e\x1d\x1c" * 3, "%s{}`;--"]
    resource = make_resource("\x1e\x1c'\\", log_iostream="\x1d")
    attributes = [{"user_id": text, "other": text, text: {}, "details": {text: 1}} for text in texts]
    batch = make_batch(texts, attributes=attributes, resource=resource)
    sink = _opened(_config(database, load_data=load))
    sink.write(batch)
    assert sink.uses_load_data is load
    sink.close()
    found = _read(_config(database), oldest_first=True)
    assert [record.message for record in found] == texts
    assert [record.attributes for record in found] == batch.attributes
    assert found[0].resource.attributes == resource.attributes


def test_statement_is_cut_to_what_the_server_takes_and_a_larger_record_fails_alone(mariadb: MariaDB) -> None:
    database = LogsDatabase(mariadb)
    try:
        mariadb.execute("SET GLOBAL max_allowed_packet = 1048576")
        sink = _opened(_config(database))
        messages = ["a" * 300_000, "b" * 900_000, "c" * 1_100_000, *["d" * 1000] * 2000]
        with pytest.raises(PartialError) as caught:
            sink.write(make_batch(messages))
        assert list(caught.value.failed) == [2]
        assert isinstance(caught.value.failed[2], PermanentError)
        assert "max_allowed_packet" in str(caught.value.failed[2])
        sink.close()
        assert database.count() == 2002
    finally:
        mariadb.execute("SET GLOBAL max_allowed_packet = 16777216")
        database.drop()


@pytest.mark.parametrize("load", [False, True])
def test_row_that_the_table_refuses_fails_alone_and_is_never_cut(database: LogsDatabase, load: bool) -> None:
    sink = _opened(_config(database, load_data=load))
    database.execute("ALTER TABLE activity_logs MODIFY message VARCHAR(10)")
    with pytest.raises(PartialError) as caught:
        sink.write(make_batch(["fits", "is much too long", "fits too"]))
    assert list(caught.value.failed) == [1]
    assert caught.value.failed[1].code == "1406"
    sink.close()
    assert database.messages() == ["fits", "fits too"]


def test_row_without_attribution_is_left_to_bisection(database: LogsDatabase, sink: MysqlSink) -> None:
    database.execute("ALTER TABLE activity_logs ADD CONSTRAINT c CHECK (message <> 'poison')")
    with pytest.raises(PermanentError) as caught:
        sink.write(make_batch(["good", "poison"]))
    assert caught.value.code in {"4025", "3819"}
    assert database.count() == 0
    sink.write(make_batch(["good"]))
    assert database.messages() == ["good"]


# LOAD DATA


def test_load_data_counts_replayed_rows_exactly(database: LogsDatabase) -> None:
    sink = _opened(_config(database, load_data=True))
    batch = make_batch([f"m{i}" for i in range(3000)])
    sink.write(batch.select(range(1000)))
    sink.write(batch)
    sink.write(batch)
    assert sink.uses_load_data
    sink.close()
    assert database.count() == 3000


class _Broken:
    def __str__(self) -> str:
        raise RuntimeError("cannot be told")


@pytest.mark.parametrize("load", [False, True])
def test_fault_while_rows_are_made_leaves_none_of_them(database: LogsDatabase, load: bool) -> None:
    """With LOAD DATA the server has the first rows by then."""
    sink = _opened(_config(database, load_data=load))
    batch = make_batch(["x"] * 900, attributes=[{}] * 899 + [{"value": _Broken()}])
    with pytest.raises(RuntimeError, match="cannot be told"):
        sink.write(batch)
    sink.open()
    sink.write(batch.select(range(10)))
    sink.close()
    assert database.count() == 10


def test_batch_is_let_go_of_once_the_next_is_on_its_way(database: LogsDatabase) -> None:
    sink = _opened(_config(database, load_data=True))
    batches = [make_batch([str(number)], start_ns=START_NS + number * 10**9) for number in range(3)]
    alone = sys.getrefcount(batches[0])
    for number in range(3):
        sink.write(batches[number])
    assert [sys.getrefcount(batches[number]) for number in range(3)] == [alone, alone, alone + 1]
    sink.close()
    assert [sys.getrefcount(batches[number]) for number in range(3)] == [alone] * 3


def _connections(database: LogsDatabase) -> int:
    """How many connections the sink has."""
    ((count,),) = database.execute(
        f"SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE USER = '{database.name}'"
    )
    return int(count)


def test_large_batch_is_loaded_by_two_connections_and_the_second_is_closed_when_idle(database: LogsDatabase) -> None:
    now = 1e9
    sink = _opened(_config(database, load_data=True), now=lambda: now)
    sink.write(make_batch(["x"] * 999))
    assert _connections(database) == 1
    for number in range(1, 3):
        sink.write(make_batch(["x"] * 1000, start_ns=START_NS + number * 10**12))
        assert _connections(database) == 2
    now += 61
    sink.write(make_batch(["x"], start_ns=START_NS + 10**13))
    assert eventually(lambda: _connections(database) == 1), "the server has let go of it"
    sink.write(make_batch(["x"] * 1000, start_ns=START_NS + 2 * 10**13))
    assert _connections(database) == 2
    sink.close()
    assert database.count() == 4000


def test_server_that_refuses_a_second_connection_is_used_by_one(
    database: LogsDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    sink = _opened(_config(database, load_data=True))
    with database.refusing("wrong_password"):
        for number in range(2):
            sink.write(make_batch(["x"] * 1000, start_ns=START_NS + number * 10**12))
        assert _connections(database) == 1
    assert caplog.text.count("because a second was refused") == 1
    assert sink.uses_load_data
    sink.close()
    assert database.count() == 2000


@pytest.mark.parametrize("there", [range(500), range(500, 1000), range(0, 1000, 2), range(1000)])
def test_halves_never_wait_for_each_other_where_rows_are_there_already(database: LogsDatabase, there: range) -> None:
    """The check for a row that is there locks what lies before it, where the other half may insert."""
    sink = _opened(_config(database, load_data=True, lock_wait_timeout="1s"))
    batch = make_batch([f"m{number}" for number in range(1000)])
    sink.write(batch.select(there))
    sink.write(batch)
    assert _connections(database) == 2
    sink.close()
    assert database.count() == 1000


@pytest.mark.parametrize("lost", [0, 1], ids=["first", "second"])
def test_half_whose_connection_is_lost_is_stored_at_the_next_try(database: LogsDatabase, lost: int) -> None:
    sink = _opened(_config(database, load_data=True))
    sink.write(make_batch(["warm"] * 1000, start_ns=START_NS + 10**13))
    assert sink._session is not None
    assert sink._second is not None
    database.execute(f"KILL {(sink._session, sink._second.lane.session)[lost].thread_id()}")
    batch = make_batch(["x"] * 1000)
    with pytest.raises(RetryableError) as caught:
        sink.write(batch)
    assert not isinstance(caught.value, ParkedError)
    assert database.count() == 1500
    sink.open()
    sink.write(batch)
    sink.close()
    assert database.count() == 2000


def test_rows_that_are_refused_are_told_from_both_halves(database: LogsDatabase) -> None:
    sink = _opened(_config(database, load_data=True))
    database.execute("ALTER TABLE activity_logs MODIFY message VARCHAR(10)")
    messages = ["fits"] * 1000
    messages[3] = messages[700] = "is much too long"
    with pytest.raises(PartialError) as caught:
        sink.write(make_batch(messages))
    assert {index: refusal.code for index, refusal in caught.value.failed.items()} == {3: "1406", 700: "1406"}
    assert database.count() == 998
    sink.write(make_batch(["good"] * 1000, start_ns=START_NS + 10**12))
    sink.close()
    assert database.count() == 1998


@pytest.mark.parametrize("broken", [100, 900], ids=["first", "second"])
def test_fault_in_one_half_is_raised_and_the_other_is_stored(database: LogsDatabase, broken: int) -> None:
    sink = _opened(_config(database, load_data=True))
    attributes: list[dict[str, Any]] = [{} for _ in range(1000)]
    attributes[broken] = {"value": _Broken()}
    with pytest.raises(RuntimeError, match="cannot be told"):
        sink.write(make_batch(["x"] * 1000, attributes=attributes))
    assert database.count() == 500
    sink.open()
    sink.write(make_batch(["x"] * 1000))
    sink.close()
    assert database.count() == 1000


def test_server_that_forbids_load_data_gets_inserts(mariadb: MariaDB, database: LogsDatabase) -> None:
    sink = _opened(_config(database, load_data=True))
    mariadb.execute("SET GLOBAL local_infile = 0")
    try:
        sink.write(make_batch(["x"]))
        assert not sink.uses_load_data
    finally:
        mariadb.execute("SET GLOBAL local_infile = 1")
    sink.close()
    assert database.messages() == ["x"]


def test_server_may_not_ask_for_any_file(database: LogsDatabase, tmp_path: Path) -> None:
    """A statement that names a file makes an honest server ask for it, as a hostile one would by itself."""
    secret = tmp_path / "secret"
    secret.write_text("secret\n")
    database.execute("CREATE TABLE stolen (line TEXT)")
    connection = session.connect(_config(database), load_data=True)
    try:
        with pytest.raises(pymysql.err.OperationalError, match="refused") as caught:
            connection.query(f"LOAD DATA LOCAL INFILE '{secret}' INTO TABLE stolen")
        assert caught.value.args[0] == 1017
        with pytest.raises(pymysql.err.OperationalError, match="refused"):
            connection.load(f"LOAD DATA LOCAL INFILE '{secret}' INTO TABLE stolen", [b"x"])
        count = connection.load("LOAD DATA LOCAL INFILE '{file}' INTO TABLE stolen", [b"a\n", b"", b"b\n"])
        assert (count.records, count.stored, count.skipped, count.warnings) == (2, 2, 0, 0)
        connection.commit()
    finally:
        connection.release()
    assert database.execute("SELECT line FROM stolen") == (("a",), ("b",))


# Errors


def test_killed_connection_is_retryable_and_the_next_open_goes_on(database: LogsDatabase, sink: MysqlSink) -> None:
    batch = make_batch(["x"])
    assert sink._session is not None
    database.execute(f"KILL {sink._session.thread_id()}")
    with pytest.raises(RetryableError) as caught:
        sink.write(batch)
    assert not isinstance(caught.value, ParkedError)
    assert sink._session is None
    with pytest.raises(RetryableError, match="not connected"):
        sink.write(batch)
    sink.open()
    sink.write(batch)
    assert database.count() == 1


@pytest.mark.parametrize("load", [False, True])
@pytest.mark.parametrize("answer", ["before", "after"])
def test_connection_cut_around_commit_neither_loses_nor_doubles(
    database: LogsDatabase, load: bool, answer: Any
) -> None:
    with FaultProxy(database.address) as proxy:
        sink = _opened(_config(database, port=proxy.port, load_data=load, ssl_mode="disabled"))  # the proxy reads along
        batch = make_batch(["x", "y"])
        sink.write(make_batch(["warm"], start_ns=START_NS + 10**12))
        proxy.cut_when(lambda data: b"COMMIT" in data, answer=answer)
        with pytest.raises(RetryableError):
            sink.write(batch)
        sink.open()
        sink.write(batch)
        sink.close()
    assert database.messages() == ["x", "y", "warm"]


def test_read_only_server_is_retried_on_a_new_connection(database: LogsDatabase, sink: MysqlSink) -> None:
    with database.refusing("read_only"):
        with pytest.raises(RetryableError) as caught:
            sink.write(make_batch(["x"]))
        assert caught.value.code == "1290"
        assert not isinstance(caught.value, ParkedError)
        assert sink._session is None
    sink.open()
    sink.write(make_batch(["x"]))
    assert database.count() == 1


def test_wrong_password_and_lost_rights_park(database: LogsDatabase, sink: MysqlSink) -> None:
    with database.refusing("wrong_password"):
        with pytest.raises(ParkedError, match="check user and password") as caught:
            sink.open()
        assert caught.value.code == "1045"
    sink.open()
    with database.refusing("no_right"), pytest.raises(ParkedError, match="grant the account"):
        sink.open()
    sink.open()
    sink.write(make_batch(["x"]))


def test_right_that_is_taken_away_meanwhile_parks_until_it_is_back(database: LogsDatabase) -> None:
    _opened(_config(database)).close()
    account = _account(database, "INSERT ON activity_logs", "INSERT ON activity_logs_resources")
    sink = _opened(_config(database, create_table=False, **account))
    sink.write(make_batch(["x"]))
    database.execute(f"REVOKE INSERT ON activity_logs FROM '{account['user']}'@'%'")
    with pytest.raises(ParkedError, match="grant the account") as caught:
        sink.write(make_batch(["y"], start_ns=START_NS + 5))
    assert caught.value.code == "1142"
    database.execute(f"GRANT INSERT ON activity_logs TO '{account['user']}'@'%'")
    sink.open()
    sink.write(make_batch(["y"], start_ns=START_NS + 5))
    sink.close()
    database.execute(f"DROP USER '{account['user']}'@'%'")
    assert sorted(database.messages()) == ["x", "y"]


def test_missing_table_column_and_database_park(database: LogsDatabase, sink: MysqlSink) -> None:
    database.execute("ALTER TABLE activity_logs DROP COLUMN host")
    with pytest.raises(ParkedError) as caught:
        sink.write(make_batch(["x"]))
    assert caught.value.code == "1054"
    database.execute("DROP TABLE activity_logs")
    with pytest.raises(ParkedError) as caught:
        sink.write(make_batch(["x"]))
    assert caught.value.code == "1146"
    with pytest.raises(ParkedError) as caught:
        _opened(MysqlConfig(**{**database.sink(), "user": "root", "password": "", "database": "nowhere"}))
    assert caught.value.code == "1049"
    sink.open()
    sink.write(make_batch(["x"]))
    assert database.count() == 1


def test_lock_wait_is_retryable_and_leaves_no_half_batch(database: LogsDatabase) -> None:
    sink = _opened(_config(database, lock_wait_timeout="1s"))
    batch = make_batch(["x", "y"])
    sink.write(batch)
    other = database.server.connect(database=database.name, autocommit=False)
    with other, other.cursor() as cursor:
        cursor.execute("SELECT * FROM activity_logs FOR UPDATE")
        with pytest.raises(RetryableError) as caught:
            sink.write(batch)
        assert caught.value.code == "1205"
        other.rollback()
    sink.write(batch)
    sink.close()
    assert database.count() == 2


def test_server_that_is_away_is_retryable_and_one_that_says_nothing_times_out(database: LogsDatabase) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(RetryableError):
            _opened(_config(database, port=port, read_timeout="200ms", connect_timeout="1s"))
    with pytest.raises(RetryableError) as caught:
        _opened(_config(database, port=port))
    assert caught.value.code == "2003"
    assert not isinstance(caught.value, ParkedError)


def test_tls_that_the_server_does_not_offer_parks(mariadb: MariaDB, database: LogsDatabase) -> None:
    if not mariadb.is_mariadb():
        pytest.skip("MySQL offers TLS by itself")
    with pytest.raises(ParkedError, match="ssl_mode") as caught:
        _opened(_config(database, ssl_mode="required"))
    assert caught.value.code == "2026"


def test_missing_partition_is_made_and_the_batch_retried(database: LogsDatabase) -> None:
    today = datetime.fromtimestamp(START_NS / 1e9, tz=UTC)
    sink = _opened(_config(database, partition="day"), now=lambda: START_NS / 1e9)
    names = database.execute(
        "SELECT PARTITION_NAME FROM information_schema.PARTITIONS WHERE TABLE_SCHEMA = DATABASE()"
        " AND TABLE_NAME = 'activity_logs' ORDER BY PARTITION_ORDINAL_POSITION"
    )
    assert names[0][0] == f"p{today:%Y%m%d}"
    assert names[-1][0] == "pmax"
    assert len(names) == 5
    database.execute("ALTER TABLE activity_logs DROP PARTITION pmax")
    batch = make_batch(["far"], start_ns=START_NS + 9 * DAY * 10**9)
    with pytest.raises(RetryableError) as caught:
        sink.write(batch)
    assert caught.value.code == "1526"
    assert not isinstance(caught.value, ParkedError)
    sink.write(batch)
    sink.close()
    assert database.messages() == ["far"]


@pytest.mark.parametrize("load", [False, True])
def test_time_without_a_partition_parks_where_partitions_are_not_ours(database: LogsDatabase, load: bool) -> None:
    ddl = "PARTITION BY RANGE COLUMNS(created_at) (PARTITION p1 VALUES LESS THAN ('2026-01-03 00:00:00'))"
    _opened(_config(database)).close()
    database.execute(f"ALTER TABLE activity_logs {ddl}")
    sink = _opened(_config(database, load_data=load))
    batch = make_batch(["first", "far"], step_ns=9 * DAY * 10**9)
    with pytest.raises(ParkedError, match="has no partition for the time of a record") as caught:
        sink.write(batch)
    assert caught.value.code == "1526"
    assert database.count() == 0
    with pytest.raises(ParkedError, match="ADD PARTITION"):
        _opened(_config(database, partition="day"))
    database.execute(str(caught.value).partition("run ")[2])
    sink.open()
    sink.write(batch)
    sink.close()
    assert database.messages() == ["first", "far"]


def test_partition_that_may_not_be_made_parks_with_the_statement(database: LogsDatabase) -> None:
    _opened(_config(database, partition="day")).close()
    account = _account(database, "INSERT, SELECT ON activity_logs", "INSERT, SELECT ON activity_logs_resources")
    sink = _opened(_config(database, partition="day", create_table=False, **account))
    database.execute("ALTER TABLE activity_logs DROP PARTITION pmax")
    with pytest.raises(ParkedError, match="ADD PARTITION") as caught:
        sink.write(make_batch(["far"], start_ns=START_NS + 4000 * DAY * 10**9))
    assert caught.value.code == "1526"
    sink.close()
    database.execute(f"DROP USER '{account['user']}'@'%'")


# Rights


def _account(database: LogsDatabase, *grants: str) -> dict[str, str]:
    name = f"u{uuid.uuid4().hex[:10]}"
    database.execute(f"CREATE USER '{name}'@'%' IDENTIFIED BY 'p'")
    for grant in grants:
        database.execute(f"GRANT {grant} TO '{name}'@'%'")
    return {"user": name, "password": "p"}


@pytest.mark.parametrize("load", [False, True])
def test_insert_alone_is_enough_and_replays_are_still_exact(database: LogsDatabase, load: bool) -> None:
    _opened(_config(database)).close()
    account = _account(database, "INSERT ON activity_logs", "INSERT ON activity_logs_resources")
    sink = _opened(_config(database, create_table=False, load_data=load, **account))
    batch = make_batch(["a", "b", "c"])
    sink.write(batch.select([1]))
    sink.write(batch)
    sink.open()
    sink.write(batch)
    sink.close()
    database.execute(f"DROP USER '{account['user']}'@'%'")
    assert database.messages() == ["a", "b", "c"]


def test_maintenance_account_creates_what_the_writer_may_not(database: LogsDatabase) -> None:
    owner = database.sink()
    database.execute("CREATE TABLE marker (id INT)")
    account = _account(database, "INSERT ON *.*")
    config = _config(
        database, partition="day", maintenance_user=owner["user"], maintenance_password=owner["password"], **account
    )
    sink = _opened(config)
    sink.write(make_batch(["x"]))
    sink.close()
    database.execute(f"DROP USER '{account['user']}'@'%'")
    assert database.messages() == ["x"]


# Retention


@pytest.mark.parametrize("partition", ["none", "day"])
def test_retention_deletes_old_rows_at_most_hourly(database: LogsDatabase, partition: str) -> None:
    now = [START_NS / 1e9]
    sink = _opened(_config(database, partition=partition, retention="2d"), now=lambda: now[0])
    for day in range(4):
        sink.write(make_batch([f"day {day}"], start_ns=START_NS + day * DAY * 10**9))
    assert database.count() == 4
    now[0] += 3.5 * DAY
    sink.write(make_batch(["now"], start_ns=START_NS + 4 * DAY * 10**9))
    kept = database.messages()
    sink.close()
    assert kept[-3:] == ["day 2", "day 3", "now"]
    assert "day 0" not in kept


def test_failing_retention_does_not_stop_delivery(database: LogsDatabase, caplog: pytest.LogCaptureFixture) -> None:
    _opened(_config(database)).close()
    account = _account(database, "INSERT ON *.*")
    sink = _opened(_config(database, create_table=False, retention="1d", **account))
    sink.write(make_batch(["x"]))
    sink.close()
    database.execute(f"DROP USER '{account['user']}'@'%'")
    assert database.count() == 1
    assert "maintenance of activity_logs failed" in caplog.text


# Options


def test_password_file_holds_bytes_and_is_read_at_each_connect(database: LogsDatabase, tmp_path: Path) -> None:
    user = database.sink()["user"]
    database.execute(f"ALTER USER '{user}'@'%' IDENTIFIED BY 'pässwörd→'")
    file = tmp_path / "password"
    file.write_bytes("pässwörd→\n".encode())
    section = {**database.sink(), "password": "", "password_file": str(file)}
    sink = _opened(MysqlConfig(**section))
    file.write_bytes(b"wrong")
    with pytest.raises(ParkedError):
        sink.open()
    file.unlink()
    with pytest.raises(ParkedError, match="cannot read password_file"):
        sink.open()
    sink.close()


def test_unix_socket(database: LogsDatabase) -> None:
    if not Path(database.server.socket).exists():
        pytest.skip("the server runs elsewhere")
    sink = _opened(_config(database, host="nowhere.invalid", unix_socket=database.server.socket))
    sink.write(make_batch(["x"]))
    sink.close()
    assert database.count() == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"table": "a`b"}, "not a table name"),
        ({"columns": {"created_at": "x"}}, "filled by shipper itself"),
        ({"ssl_mode": "verify_ca"}, "needs ssl_ca"),
        ({"ssl_key": "/k"}, "needs ssl_cert"),
        ({"ssl_mode": "disabled", "ssl_ca": "/ca"}, "would not use"),
        ({"read_timeout": "0s"}, "more than 0"),
    ],
)
def test_bad_options_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MysqlConfig(type="mysql", database="d", user="u", **options)


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (2006, RetryableError), (1213, RetryableError), (1836, RetryableError), (1040, RetryableError),
        (1114, RetryableError), (1317, RetryableError), (1044, ParkedError), (1136, ParkedError),
        (1153, PermanentError), (3140, PermanentError), (1292, PermanentError), (9999, RetryableError),
    ],
)  # fmt: skip
def test_errors_that_cannot_be_provoked_here_are_sorted_by_number(number: int, kind: type[Exception]) -> None:
    told = faults.sorted_error(pymysql.err.OperationalError(number, "text"), "mysql here:3306")
    assert type(told) is kind
    assert told.code == str(number)


# Reading


def test_time_bounds_are_exact_and_pages_join(database: LogsDatabase, sink: MysqlSink) -> None:
    batch = make_batch([f"{i}" for i in range(4500)], step_ns=1)
    sink.write(batch)
    config = _config(database)
    assert [record.id for record in _read(config)] == batch.ids[::-1]
    assert [r.message for r in _read(config, since=START_NS + 2, until=START_NS + 5)] == ["4", "3", "2"]
    condition = compile_condition("level:info 44 -9")
    wanted = [record.id for record in batch.records() if condition.matches(record)]
    assert [record.id for record in _read(config, condition=condition, oldest_first=True)] == wanted
    assert len(_read(config, limit=3, condition=condition)) == 3


def test_parallel_writers_of_the_same_rows_do_not_deadlock(database: LogsDatabase) -> None:
    batch = make_batch([str(i) for i in range(400)])
    _opened(_config(database)).close()
    errors: list[Exception] = []

    def write(step: int) -> None:
        sink = _opened(_config(database))
        try:
            for start in range(0, 200, 50):
                rows = range(start, start + 200)
                sink.write(batch.select(rows if step % 2 else rows[::-1]))
        except Exception as error:  # noqa: BLE001 - told below, in the test's own thread
            errors.append(error)
        finally:
            sink.close()

    threads = [threading.Thread(target=write, args=(step,)) for step in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert database.count() == 350


def test_order_in_the_batch_does_not_matter(database: LogsDatabase, sink: MysqlSink) -> None:
    late, early = make_batch(["late"], start_ns=START_NS + 10**9), make_batch(["early"])
    sink.write(Batch.concat([late, early, late]))
    assert database.messages() == ["early", "late"]


@pytest.mark.slow
def test_tls_is_verified_by_authority_and_name(tmp_path: Path) -> None:
    """A real handshake: the right certificate is taken, a stranger's and one for another name are not."""
    authority = Authority(tmp_path)
    pair = authority.issue("127.0.0.1")
    options = (f"--ssl-cert={pair.cert}", f"--ssl-key={pair.key}", f"--ssl-ca={authority.cert}")
    for path in (tmp_path, *tmp_path.parents[:-2], pair.cert, pair.key, authority.cert):
        path.chmod(0o755 if path.is_dir() else 0o644)
    with MariaDB(options=options) as server:
        database = LogsDatabase(server)
        secure = {"host": "127.0.0.1", "port": server.port, "unix_socket": "", "ssl_mode": "verify_identity"}
        sink = _opened(_config(database, **secure, ssl_ca=str(authority.cert)))
        sink.write(make_batch(["by TLS"]))
        sink.close()
        assert len(database.rows("1")) == 1
        with pytest.raises(ParkedError):
            _opened(_config(database, **secure, ssl_ca=str(Authority(tmp_path, "stranger").cert)))
        with pytest.raises(ParkedError):
            _opened(_config(database, **{**secure, "host": "localhost"}, ssl_ca=str(authority.cert)))


def _verdicts(config: MysqlConfig) -> dict[str, str]:
    found = list(MysqlSink(config).examine())
    assert all(finding.fix for finding in found if finding.verdict == "fail")
    return {finding.what: finding.verdict for finding in found}


def test_examine_finds_a_good_server_good_and_makes_nothing(database: LogsDatabase) -> None:
    found = _verdicts(_config(database))
    assert {what for what, verdict in found.items() if verdict == "fail"} == set()
    assert found.keys() >= {"reachable", "tls", "login", "rights", "limits", "writable", "clock", "table"}
    assert found["rights"] == "ok"
    assert database.execute("SHOW TABLES") == ()


def test_examine_tells_login_rights_read_only_and_the_network_apart(database: LogsDatabase, sink: MysqlSink) -> None:
    config = _config(database)
    with database.refusing("wrong_password"):
        assert _verdicts(config) == {"login": "fail"}
    with database.refusing("no_right"):
        assert _verdicts(config) == {"login": "fail"}, "the database itself is closed to the account"
    with database.refusing("read_only"):
        assert _verdicts(config)["writable"] == "fail"
    assert _verdicts(_config(database, port=1)) == {"reachable": "fail"}


def test_examine_finds_a_table_of_another_shape(database: LogsDatabase, sink: MysqlSink) -> None:
    database.execute(f"ALTER TABLE {database.table} MODIFY created_at DATETIME NOT NULL")
    assert _verdicts(_config(database))["table"] == "fail"


def test_examine_names_the_rights_that_lack(database: LogsDatabase, sink: MysqlSink) -> None:
    user = f"'{database.name}'@'%'"
    database.execute(
        f"REVOKE ALL ON {database.name}.* FROM {user}", f"GRANT SELECT ON {database.name}.{database.table} TO {user}"
    )
    (rights,) = [finding for finding in MysqlSink(_config(database)).examine() if finding.what == "rights"]
    assert rights.verdict == "fail"
    assert "GRANT INSERT, UPDATE ON" in rights.fix
