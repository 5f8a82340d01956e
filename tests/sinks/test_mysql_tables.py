"""Tables that shipper did not make: never changed unasked, and what they do not hold is told and kept in ``details``."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shipper.clock import SystemClock
from shipper.delivery.canary import examine
from shipper.errors import ParkedError, RetryableError
from shipper.reader import Query
from shipper.record import SEVERITIES, Record
from shipper.routing.condition import compile_condition
from shipper.sink import Finding
from shipper.testing.batches import START_NS, make_batch, make_resource
from sinks.mysql import MysqlConfig, MysqlReader, MysqlSink
from support.logs_database import LogsDatabase
from support.mariadb import MariaDB

pytestmark = pytest.mark.mariadb

#: What FailDaily's backend might have made itself.
BACKEND = (
    "CREATE TABLE activity_logs (id VARCHAR(36) PRIMARY KEY, level VARCHAR(10), message TEXT, details JSON,"
    " user_id VARCHAR(20), action VARCHAR(50), ip_address VARCHAR(45), user_agent TEXT,"
    " created_at DATETIME(6) DEFAULT CURRENT_TIMESTAMP(6)) CHARSET utf8mb4"
)
WHOLE = (
    "service VARCHAR(255), container VARCHAR(255), stream VARCHAR(16), host VARCHAR(255), source VARCHAR(255),"
    " shipper VARCHAR(255)"
)


@pytest.fixture
def database(mariadb: MariaDB) -> Iterator[LogsDatabase]:
    database = LogsDatabase(mariadb)
    yield database
    database.drop()


def _config(database: LogsDatabase, **options: Any) -> MysqlConfig:
    return MysqlConfig(**database.sink(**options))


def _opened(config: MysqlConfig) -> MysqlSink:
    sink = MysqlSink(config)
    sink.open()
    return sink


def _read(config: MysqlConfig, **query: Any) -> list[Record]:
    reader = MysqlReader(config)
    try:
        return list(reader.read(Query(oldest_first=True, **query)))
    finally:
        reader.close()


def _ddl(database: LogsDatabase) -> dict[str, str]:
    names = [name for (name,) in database.execute("SHOW TABLES")]
    return {name: database.execute(f"SHOW CREATE TABLE {name}")[0][1] for name in names}


def _looked(config: MysqlConfig) -> list[Finding]:
    """Everything that ``check --online`` and ``doctor`` do to a sink."""
    return list(examine(config, clock=SystemClock()))


def _table(database: LogsDatabase, **columns: str) -> None:
    """Make a table of another program's with all our columns, some of them as ``columns`` says."""
    types = {
        "id": "VARCHAR(36) NOT NULL", "level": "VARCHAR(16)", "message": "LONGTEXT", "details": "LONGTEXT",
        "user_id": "VARCHAR(255)", "action": "VARCHAR(255)", "ip_address": "VARCHAR(64)", "user_agent": "TEXT",
        "created_at": "DATETIME(6) NOT NULL",
    }  # fmt: skip
    options = columns.pop("options", "CHARSET utf8mb4")
    changed = ", ".join(f"{name} {kind}" for name, kind in {**types, **columns}.items())
    database.execute(f"CREATE TABLE activity_logs ({changed}, {WHOLE}, PRIMARY KEY (id)) {options}")


# Whose a table is


def test_looking_at_a_foreign_table_changes_nothing_and_names_the_command(database: LogsDatabase) -> None:
    database.execute(BACKEND)
    before = _ddl(database)
    findings = _looked(_config(database))
    (table,) = [finding for finding in findings if finding.what == "table"]
    assert table.verdict == "fail"
    assert "was not made by shipper" in table.evidence
    assert "shipper prepare" in table.evidence
    assert "write" not in [finding.what for finding in findings]
    assert _ddl(database) == before
    assert database.count() == 0


def test_looking_makes_no_table_and_writes_no_canary_for_it(database: LogsDatabase) -> None:
    findings = _looked(_config(database))
    (write,) = [finding for finding in findings if finding.what == "write"]
    assert "no canary was written" in write.evidence
    assert _ddl(database) == {}


def test_looking_at_our_table_writes_one_canary(database: LogsDatabase) -> None:
    _opened(_config(database)).close()
    before = _ddl(database)
    assert [f.verdict for f in _looked(_config(database)) if f.what in {"write", "read", "table"}] == ["ok"] * 3
    assert _ddl(database) == before
    assert database.count() == 1


def test_types_of_keys_are_looked_at_before_anything_is_made(database: LogsDatabase) -> None:
    """A number as id: no column may be added to such a table, and nobody may be told to change its type."""
    database.execute(
        "CREATE TABLE activity_logs (id INT AUTO_INCREMENT PRIMARY KEY, message TEXT, created_at DATETIME)"
    )
    before = _ddl(database)
    with pytest.raises(ParkedError) as caught:
        _opened(_config(database))
    (table,) = [finding for finding in _looked(_config(database)) if finding.what == "table"]
    assert _ddl(database) == before
    for text in (str(caught.value), table.evidence, table.fix):
        assert "ALTER" not in text
        assert "MODIFY" not in text
    assert "id is int" in str(caught.value)
    assert "created_at is datetime" in str(caught.value)
    assert "set table:" in str(caught.value)


@pytest.mark.parametrize(
    ("ddl", "message"),
    [
        ("id VARCHAR(36) PRIMARY KEY, created_at DATETIME", "created_at is datetime and must be datetime"),
        ("id BINARY(16) PRIMARY KEY, created_at DATETIME(6)", "id is binary"),
        ("id VARCHAR(36), created_at DATETIME(6), KEY (id)", "would show twice"),
        ("id VARCHAR(36), created_at DATETIME(6), UNIQUE (id(8))", "would show twice"),
        ("id VARCHAR(36), created_at DATETIME(6), n INT, UNIQUE (id, n)", "would show twice"),
        ("id VARCHAR(36) PRIMARY KEY, message INT", "message is int"),
        ("id VARCHAR(36) PRIMARY KEY, details VARCHAR(255)", "details is varchar"),
        ("id VARCHAR(36) PRIMARY KEY, level TINYINT", "level is tinyint"),
        ("id VARCHAR(36) PRIMARY KEY, level ENUM('a', 'b')", "level is enum"),
        ("id VARCHAR(36) PRIMARY KEY, tenant INT NOT NULL", "tenant needs a value"),
        ("id VARCHAR(36) PRIMARY KEY, action VARCHAR(9) AS ('x')", "action is generated"),
        ("id VARCHAR(36) PRIMARY KEY, user_id DATE NOT NULL", "user_id is date and may not be NULL"),
        ("id VARCHAR(36) PRIMARY KEY, host INT", "host is int"),
    ],
)
def test_table_that_would_lose_change_or_double_records_parks_untouched(
    database: LogsDatabase, ddl: str, message: str
) -> None:
    database.execute(f"CREATE TABLE activity_logs ({ddl})")
    before = _ddl(database)
    with pytest.raises(ParkedError, match=message):
        _opened(_config(database))
    assert _ddl(database) == before


def test_foreign_table_parks_the_daemon_until_it_was_prepared(database: LogsDatabase) -> None:
    database.execute(BACKEND)
    before = _ddl(database)
    sink = MysqlSink(_config(database))
    with pytest.raises(ParkedError, match="run shipper prepare"):
        sink.open()
    assert _ddl(database) == before
    (added,) = [change for change in sink.changes() if not change.ours]
    assert added.text.startswith("ALTER TABLE `activity_logs` ADD COLUMN")
    sink.prepare()
    assert sink.changes() == []
    sink.open()
    batch = make_batch(["x"], attributes={"user_id": "u" * 21, "action": "a" * 50})
    sink.write(batch)
    sink.write(batch)
    sink.close()
    [row] = database.rows("user_id, action, service, details")
    assert (*row[:3], json.loads(row[3])) == (None, "a" * 50, "api", {"user_id": "u" * 21})
    assert _read(_config(database))[0].attributes == {"user_id": "u" * 21, "action": "a" * 50}


def test_without_create_table_nothing_is_made_but_by_the_command(database: LogsDatabase) -> None:
    sink = MysqlSink(_config(database, create_table=False))
    assert [change.ours for change in sink.changes()] == [False, False]
    with pytest.raises(ParkedError):
        sink.open()
    assert _ddl(database) == {}
    sink.prepare()
    sink.open()
    sink.close()


@pytest.mark.parametrize("commented", [True, False], ids=["today", "of an earlier version"])
def test_table_of_our_making_gets_the_columns_that_it_lacks(database: LogsDatabase, commented: bool) -> None:
    _opened(_config(database)).close()
    database.execute("ALTER TABLE activity_logs DROP COLUMN host, DROP COLUMN shipper")
    if not commented:
        database.execute("ALTER TABLE activity_logs COMMENT = ''")
    config = _config(database, columns={"user_id": "user_id", "trace": "trace.id"})
    sink = _opened(config)
    sink.write(make_batch(["x"], attributes={"trace.id": "t"}))
    sink.close()
    assert database.rows("trace") == [("t",)]


def test_foreign_table_without_our_marker_is_used_and_not_given_one(
    database: LogsDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    _table(database)
    database.execute("ALTER TABLE activity_logs DROP COLUMN shipper")
    before = _ddl(database)["activity_logs"]
    sink = _opened(_config(database))
    sink.write(make_batch(["x"], start_ns=START_NS + 5))
    sink.close()
    assert _ddl(database)["activity_logs"] == before
    assert "to keep them run shipper prepare" in caplog.text


def test_days_are_kept_in_tables_of_ours_or_that_were_handed_over(database: LogsDatabase) -> None:
    database.execute(f"CREATE TABLE activity_logs (id VARCHAR(36), level VARCHAR(9), message TEXT, details JSON, user_id TEXT,"
                     f" action TEXT, ip_address TEXT, user_agent TEXT, created_at DATETIME(6), {WHOLE},"
                     " PRIMARY KEY (created_at, id)) COMMENT 'it''s \\\\ ours\\n'")  # fmt: skip
    before = _ddl(database)["activity_logs"]
    sink = MysqlSink(_config(database, partition="day"))
    with pytest.raises(ParkedError, match="keeps days in tables of its own only"):
        sink.open()
    assert _ddl(database)["activity_logs"] == before
    sink.prepare()
    sink.open()
    sink.close()
    after = _ddl(database)["activity_logs"]
    assert "it''s \\\\ ours\\n; kept by shipper" in after
    assert "pmax" in after


def test_row_format_that_may_refuse_long_rows_is_told(database: LogsDatabase) -> None:
    short = dict.fromkeys(("user_id", "action", "user_agent"), "VARCHAR(60)")
    _table(database, **short, options="ROW_FORMAT=COMPACT CHARSET utf8mb4")
    *_, table = [finding for finding in MysqlSink(_config(database)).examine() if finding.what == "table"]
    assert (table.verdict, "row format is Compact" in table.evidence) == ("warn", True)


def test_fault_while_the_table_is_made_parks(database: LogsDatabase) -> None:
    """The number (1118, too large a row) would condemn a record, if there were one yet."""
    with pytest.raises(ParkedError) as caught:
        _opened(_config(database, columns={f"c{number}": f"a{number}" for number in range(80)}))
    assert caught.value.code == "1118"


def test_table_is_made_whatever_row_format_is_the_servers_default(mariadb: MariaDB, database: LogsDatabase) -> None:
    mariadb.execute("SET GLOBAL innodb_default_row_format = compact")
    try:
        _opened(_config(database)).close()
    finally:
        mariadb.execute("SET GLOBAL innodb_default_row_format = dynamic")
    assert "ROW_FORMAT=DYNAMIC" in _ddl(database)["activity_logs"]


# What a table does not hold


@pytest.mark.parametrize("load", [False, True])
@pytest.mark.parametrize(
    ("columns", "message", "attributes", "told", "row"),
    [
        ({"user_id": "INT"}, "x", {"user_id": "abc"}, "user_id is int", {"user_id": None}),
        ({"user_id": "INT"}, "x", {"user_id": 7}, "user_id is int", {"user_id": 7}),
        ({"user_id": "INT"}, "x", {"user_id": "7"}, "user_id is int", {"user_id": 7}),
        ({"user_id": "INT"}, "x", {"user_id": "007"}, "user_id is int", {"user_id": None}),
        ({"user_id": "INT"}, "x", {"user_id": 2**40}, "user_id is int", {"user_id": None}),
        ({"user_id": "TINYINT UNSIGNED NOT NULL"}, "x", {"user_id": 255}, "may not be NULL", {"user_id": 255}),
        ({"user_id": "TINYINT UNSIGNED NOT NULL"}, "x", {"user_id": -1}, "user_id is tinyint", {"user_id": 0}),
        ({"action": "ENUM('login', 'out') NOT NULL"}, "x", {}, "action is enum", {"action": "login"}),
        ({"action": "ENUM('login', 'out')"}, "x", {"action": "Login"}, "action is enum", {"action": None}),
        ({"action": "ENUM('login', 'out')"}, "x", {"action": "1"}, "action is enum", {"action": None}),
        ({"action": "VARCHAR(20) NOT NULL"}, "x", {"user_id": 1}, "action may not be NULL", {"action": ""}),
        ({"action": "CHAR(9)"}, "x", {"action": "a "}, None, {"action": None}),
        ({"action": "DATE"}, "x", {"action": "2026-01-01"}, "action is date", {"action": None}),
        ({"action": "VARBINARY(20)"}, "x", {"action": "login"}, "action is varbinary", {"action": None}),
        ({"action": "VARCHAR(20) CHARACTER SET utf8mb3"}, "x", {"action": "a\U0001f600"}, "utf8mb3", {"action": None}),
        ({"action": "VARCHAR(20) CHARACTER SET utf8mb3"}, "x", {"action": "日本"}, "utf8mb3", {"action": "日本"}),
        ({"action": "VARCHAR(20) CHARACTER SET latin1"}, "x", {"action": "é€"}, "latin1", {"action": "é€"}),
        ({"action": "VARCHAR(20) CHARACTER SET latin1"}, "x", {"action": "日"}, "latin1", {"action": None}),
        ({"message": "VARCHAR(10)"}, "é" * 30, {"a": 1}, "message holds 10", {"message": "é" * 9 + "…"}),
        ({"message": "VARCHAR(10)"}, "y" * 10, {"a": 1}, "message holds 10", {"message": "y" * 10}),
        ({"message": "VARCHAR(10)"}, "\U0001f600" * 11, {"message": "mine"}, "10", {"message": "\U0001f600" * 9 + "…"}),
        ({"message": "TINYTEXT"}, "y" * 300, {"details": {"k": 1}, "n": 2}, "message holds 63", {}),
        ({"message": "TEXT CHARACTER SET utf8mb3"}, "a\U0001f600", {}, "utf8mb3", {"message": "a?"}),
        ({"message": "VARCHAR(9) CHARACTER SET ascii"}, "é" * 10, {}, "ascii", {"message": "??????..."}),
        ({"details": "LONGTEXT CHARACTER SET ascii NOT NULL"}, "x", {}, None, {"details": "{}"}),
        ({"details": "LONGTEXT CHARACTER SET utf8mb3"}, "x", {"k": "é\U0001f600", "\U0001f600": 1}, None, {}),
        ({"level": "ENUM('info', 'warn', 'error') NOT NULL"}, "x", {}, "error for fatal", {}),
    ],
)  # fmt: skip
def test_what_a_column_does_not_hold_is_told_and_read_back_whole(
    *,
    database: LogsDatabase,
    caplog: pytest.LogCaptureFixture,
    load: bool,
    columns: dict[str, str],
    message: str,
    attributes: dict[str, Any],
    told: str | None,
    row: dict[str, Any],
) -> None:
    _table(database, **columns)
    config = _config(database, load_data=load)
    sink = _opened(config)
    batch = make_batch([message], attributes=attributes, start_ns=START_NS + 7)
    sink.write(batch)
    sink.write(batch)
    sink.close()
    (found,) = database.rows(", ".join(row) or "id")
    if row:
        assert found == tuple(row.values())
    (record,) = _read(config)
    assert (record.message, record.attributes, record.time_ns) == (message, attributes, START_NS + 7)
    if told is not None:
        assert told in caplog.text
        (finding,) = [finding for finding in sink.examine() if finding.what == "table"]
        assert (finding.verdict, told in finding.evidence) == ("warn", True)


@pytest.mark.parametrize("load", [False, True])
def test_level_that_a_column_does_not_know_is_the_nearest_and_comes_back(database: LogsDatabase, load: bool) -> None:
    _table(database, level="ENUM('INFO', 'warning', 'error')")
    config = _config(database, load_data=load)
    sink = _opened(config)
    for place, level in enumerate(SEVERITIES):
        sink.write(make_batch([level], level=level, start_ns=START_NS + place * 10**9))
    sink.close()
    assert database.rows("message, level") == [
        ("trace", "INFO"), ("debug", "INFO"), ("info", "INFO"), ("warn", "warning"), ("error", "error"), ("fatal", "error"),
    ]  # fmt: skip
    assert [record.level for record in _read(config)] == list(SEVERITIES)
    assert [record.message for record in _read(config, condition=compile_condition("level:fatal"))] == ["fatal"]


def test_search_finds_what_the_message_column_does_not_hold(database: LogsDatabase) -> None:
    _table(database, message="VARCHAR(10)")
    config = _config(database)
    sink = _opened(config)
    sink.write(make_batch(["0123456789 needle"]))
    sink.close()
    assert len(_read(config, condition=compile_condition("message:*needle*"))) == 1


def test_resource_that_its_columns_do_not_hold_comes_back_whole(database: LogsDatabase) -> None:
    _table(database)
    database.execute(
        "ALTER TABLE activity_logs MODIFY service VARCHAR(9) CHARACTER SET latin1 NOT NULL, MODIFY host VARCHAR(9) NOT NULL"
    )
    config = _config(database)
    sink = _opened(config)
    resource = make_resource("日本語のサービス")
    sink.write(make_batch(["x"], resource=resource))
    sink.close()
    assert _read(config)[0].resource.attributes == resource.attributes


def test_what_is_told_is_told_once(database: LogsDatabase, caplog: pytest.LogCaptureFixture) -> None:
    _table(database, user_id="INT")
    caplog.set_level(logging.INFO)
    sink = _opened(_config(database))
    sink.open()
    sink.close()
    assert caplog.text.count("user_id is int") == 1


def test_own_unique_key_is_told_at_the_start(database: LogsDatabase, caplog: pytest.LogCaptureFixture) -> None:
    _table(database)
    database.execute("ALTER TABLE activity_logs ADD UNIQUE KEY one_login (user_id, action)")
    sink = _opened(_config(database))
    sink.close()
    assert "the unique key one_login (user_id, action) refuses rows" in caplog.text
    (finding,) = [finding for finding in sink.examine() if finding.what == "table"]
    assert "one_login" in finding.evidence


# LOAD DATA by itself


def test_load_data_is_taken_where_it_is_allowed(database: LogsDatabase) -> None:
    sink = _opened(_config(database))
    ((allowed,),) = database.execute("SELECT @@local_infile")
    assert sink.uses_load_data is bool(allowed)
    sink.write(make_batch(["x"]))
    sink.close()
    (finding,) = [finding for finding in sink.examine() if finding.what == "load_data"]
    assert finding.verdict == "ok"


@pytest.mark.parametrize(("load_data", "level"), [("auto", "INFO"), (True, "WARNING"), ("true", "WARNING")])
def test_where_load_data_is_not_allowed_inserts_are_used_and_told_once(
    mariadb: MariaDB, database: LogsDatabase, caplog: pytest.LogCaptureFixture, load_data: Any, level: str
) -> None:
    caplog.set_level(logging.INFO)
    ((before,),) = mariadb.execute("SELECT @@local_infile")
    mariadb.execute("SET GLOBAL local_infile = 0")
    try:
        sink = _opened(_config(database, load_data=load_data))
        sink.write(make_batch(["x"]))
        sink.open()
        sink.close()
        assert not sink.uses_load_data
        (told,) = [record for record in caplog.records if "local_infile" in record.message]
        assert told.levelname == level
        (finding,) = [finding for finding in sink.examine() if finding.what == "load_data"]
        assert finding.verdict == ("ok" if load_data == "auto" else "warn")
        assert "SET GLOBAL local_infile = ON" in finding.evidence
    finally:
        mariadb.execute(f"SET GLOBAL local_infile = {before}")
    assert database.messages() == ["x"]


@pytest.mark.parametrize("load_data", [False, "false"])
def test_load_data_may_be_turned_off(database: LogsDatabase, load_data: Any) -> None:
    sink = _opened(_config(database, load_data=load_data))
    assert not sink.uses_load_data
    sink.close()


def test_pymysqls_own_answer_to_a_server_that_asks_for_a_file_is_off(
    database: LogsDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Should a version of PyMySQL no longer come by our guard, it must refuse, not open the file."""
    from pymysql.connections import MySQLResult

    from sinks.mysql import session

    secret = tmp_path / "secret"
    secret.write_text("secret\n")
    database.execute("CREATE TABLE stolen (line TEXT)", "SET GLOBAL local_infile = 1")
    monkeypatch.setattr(session, "_GuardedResult", MySQLResult)
    connection = session.connect(_config(database), load_data=True)
    try:
        with pytest.raises(RuntimeError, match="local_infile option is false"):
            connection.query(f"LOAD DATA LOCAL INFILE '{secret}' INTO TABLE stolen")
    finally:
        connection._force_close()
    assert database.execute("SELECT * FROM stolen") == ()


def test_error_of_a_proxy_that_does_not_know_load_data_is_no_reason_to_wait(
    database: LogsDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pymysql

    from sinks.mysql.session import Session

    def refuse(*_: Any) -> None:
        raise pymysql.err.OperationalError(1047, "Unsupported LOAD DATA LOCAL INFILE command")

    database.execute("SET GLOBAL local_infile = 1")
    monkeypatch.setattr(Session, "load", refuse)
    sink = _opened(_config(database))
    sink.write(make_batch(["x"] * 100))
    assert not sink.uses_load_data
    sink.close()
    assert database.count() == 100


def test_few_rows_go_by_insert_whose_answer_comes_sooner(
    database: LogsDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sinks.mysql.session import Session

    loads = []
    load = Session.load
    monkeypatch.setattr(Session, "load", lambda self, *given: loads.append(1) or load(self, *given))
    database.execute("SET GLOBAL local_infile = 1")
    sink = _opened(_config(database))
    sink.write(make_batch(["x"] * 99))
    assert loads == []
    sink.write(make_batch(["y"] * 100, start_ns=START_NS + 10**12))
    assert loads == [1]
    sink.close()
    assert database.count() == 199


def test_prepare_never_names_an_error_of_the_table_as_a_records(database: LogsDatabase) -> None:
    database.execute("CREATE TABLE activity_logs_resources (id VARCHAR(16) PRIMARY KEY, attributes LONGTEXT)")
    with database.refusing("no_right"), pytest.raises(RetryableError):
        _opened(_config(database))
