"""The SQLite sink and its reader."""

from __future__ import annotations

import os
import random
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import apsw
import pytest

from shipper.errors import ParkedError, PermanentError, RetryableError, SinkError
from shipper.reader import Query
from shipper.record import Batch, Record, Resource
from shipper.routing.condition import compile_condition
from shipper.sink import Sink
from shipper.testing.batches import START_NS, make_batch, make_resource
from shipper.testing.sink_contract import SinkContract
from sinks._sql import Mapping
from sinks.sqlite import SqliteConfig, SqliteReader, SqliteSink, _error
from support.arrivals import sqlite_database

DAY = 86_400


def _config(tmp_path: Path, **options: Any) -> SqliteConfig:
    return SqliteConfig(type="sqlite", path=str(tmp_path / "data" / "logs.db"), **options)


def _read(config: SqliteConfig, **query: Any) -> list[Record]:
    reader = SqliteReader(config)
    try:
        return list(reader.read(Query(**query)))
    finally:
        reader.close()


def _written(config: SqliteConfig, *batches: Batch, **options: Any) -> SqliteSink:
    sink = SqliteSink(config, **options)
    sink.open()
    for batch in batches:
        sink.write(batch)
    return sink


def _rows(config: SqliteConfig, sql: str) -> list[Any]:
    with sqlite_database(config.path) as db:
        return db.execute(sql).fetchall()


class TestSqlite(SinkContract):
    exactly_once = True
    example = Path("config/examples/sqlite.yaml")

    def make_sink(self, tmp_path: Path) -> Sink:
        return SqliteSink(_config(tmp_path))

    def read_back(self, sink: Sink) -> list[Record]:
        assert isinstance(sink, SqliteSink)
        return _read(sink._config, oldest_first=True)

    def order_key(self, record: Record) -> Any:
        return record.time_ns, record.id


def test_columns_are_those_of_the_mysql_table_and_hold_what_they_are_named_after(tmp_path: Path) -> None:
    config = _config(tmp_path)
    attributes = {"user_id": 42, "action": "login", "ip_address": "10.0.0.1", "user_agent": "curl", "extra": [1]}
    _written(config, make_batch(["hello"], level="warn", attributes=attributes)).close()
    with sqlite_database(config.path) as db:
        cursor = db.execute("SELECT * FROM activity_logs")
        names = [column[0] for column in cursor.get_description()]
        row = dict(zip(names, next(cursor), strict=True))
    assert list(row) == [
        "id", "level", "message", "details", "user_id", "action", "ip_address", "user_agent", "created_at",
        "service", "container", "stream", "host", "source", "shipper",
    ]  # fmt: skip
    assert row["level"] == "warn"
    assert row["user_id"] == "42"
    assert row["created_at"] == "2026-01-02 03:04:05.000000"
    assert (row["service"], row["container"], row["stream"]) == ("api", "api-1", "stdout")
    assert row["details"] == '{"extra":[1]}'
    assert row["shipper"].endswith(",user_id")


def test_returning_means_durable(tmp_path: Path) -> None:
    sink = _written(_config(tmp_path))
    assert sink._db is not None
    assert sink._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert sink._db.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    sink.close()


def test_busy_timeout_is_that_of_the_config(tmp_path: Path) -> None:
    sink = _written(_config(tmp_path, busy_timeout="0.25s"))
    assert sink._db is not None
    assert sink._db.execute("PRAGMA busy_timeout").get == 250
    sink.close()


def test_object_details_stand_at_the_top_of_details_and_come_back_as_they_were(tmp_path: Path) -> None:
    config = _config(tmp_path)
    cases: list[dict[str, Any]] = [
        {"details": {"fail_id": 1}},
        {"details": {"fail_id": 1}, "other": True},
        {"details": {"other": 1}, "other": True},
        {"details": {}},
        {"details": {"details": {"details": 1}}, "x": 1},
        {"details": "text"},
        {"details": None, "user_id": None},
        {"shipper": "mine", "details": {"shipper": "*"}, "user_id": 5},
        {"shipper": "7,", "attributes": {"a": 1}},
        {"details": {"a": 1}, "a,b": 2},
        {"details": {"a": 1}, "": 2},
        {"details": {"a": 1}, "+": 2, ",": 3},
        {"details": {"a": 1}, "n" * 300: 2},
        {"details": {"user_id": 1, "id": 3}, "user_id": ["x"], "timestamp": None},
        {"details": {"user_id": 1, "id": 3}, "user_id": 2, "timestamp": "t", "service": None},
        {"details": ["x"], "id": 1},
        {"details": {"details": 1}, "details ": 1},
        {"user_id": True, "action": 1.5, "ip_address": ["x"]},
        {},
    ]
    _written(config, make_batch([str(i) for i in range(len(cases))], attributes=cases)).close()
    assert [record.attributes for record in _read(config, oldest_first=True)] == cases
    assert _rows(config, "SELECT json_extract(details, '$.fail_id') FROM activity_logs LIMIT 2") == [(1,), (1,)]


WINSTON = {
    "id": "f-1", "service": "api", "timestamp": "2026-01-02T03:04:05.000Z", "user_id": 7,
    "details": {"fail_id": 1, "tags": ["a", "b"]},
}  # fmt: skip


def test_details_are_what_a_human_expects_and_the_marker_stands_in_its_own_column(tmp_path: Path) -> None:
    config = _config(tmp_path)
    cases: list[dict[str, Any]] = [
        WINSTON,
        {"details": {"fail_id": 1}},
        {"details": {"id": 1}, "id": 2},
        {"id": 1},
        {"action": "login"},
        {},
    ]
    bare = Resource("docker", {"service.name": "api"})
    _written(config, make_batch(["x"] * 6, attributes=cases, resource=bare, step_ns=1_000_000)).close()
    assert _rows(config, "SELECT details, shipper FROM activity_logs ORDER BY created_at") == [
        (
            '{"fail_id":1,"tags":["a","b"],"id":"f-1","service":"api","timestamp":"2026-01-02T03:04:05.000Z"}',
            "0,,user_id,+id,service,timestamp",
        ),
        ('{"fail_id":1}', "0,,+"),
        ('{"details":{"id":1},"id":2}', None),
        ('{"id":1}', None),
        (None, None),
        (None, None),
    ]
    assert [record.attributes for record in _read(config, oldest_first=True)] == cases


def test_marker_that_is_too_long_for_its_column_stands_in_details(tmp_path: Path) -> None:
    names = {f"c{index:02d}_{'x' * 30}": f"a{index}" for index in range(12)}
    config = _config(tmp_path, columns=names)
    cases: list[dict[str, Any]] = [
        {f"a{index}": index for index in range(12)},
        {"a0": 1, "details": {"fail_id": 1}, "other": 2},
        {**{f"a{index}": index for index in range(12)}, "details": {"fail_id": 1}},
    ]
    batch = make_batch(["x"] * 3, attributes=cases)
    _written(config, batch).close()
    markers = [row[0] for row in _rows(config, "SELECT shipper FROM activity_logs ORDER BY created_at")]
    assert markers[0] == markers[2] == "*"
    assert len(markers[1]) < 255
    found = _read(config, oldest_first=True)
    assert [record.attributes for record in found] == cases
    assert [record.time_ns for record in found] == batch.times
    assert found[0].resource.attributes == batch.resources[0].attributes


def test_table_without_the_marker_is_read_and_gets_it_when_it_is_written_to(tmp_path: Path) -> None:
    config = _config(tmp_path)
    _written(config, make_batch(["old"])).close()
    with sqlite_database(config.path) as db:
        db.execute("ALTER TABLE activity_logs DROP COLUMN shipper")
    (old,) = _read(config)
    assert old.message == "old"
    batch = make_batch(["new"], start_ns=START_NS + 10**9 + 1, attributes=WINSTON)
    _written(config, batch).close()
    assert _read(config, limit=1)[0].time_ns == START_NS + 10**9 + 1
    assert _read(config, limit=1)[0].attributes == WINSTON


def test_random_shapes_of_attributes_come_back_as_they_were(tmp_path: Path) -> None:
    """Batches of one shape and of many, whose values sometimes do not fit their column."""
    config = _config(tmp_path)
    rng = random.Random(7)
    values: list[Any] = ["x", 5, None, True, 1.5, ["y"], {"k": 1}, {}]
    names = ["user_id", "action", "details", "details", "id", "k", "a,b"]
    sink = _written(config)
    wanted: list[dict[str, Any]] = []
    for step in range(60):
        keys = [rng.sample(names, rng.randint(0, 6)) for _ in range(rng.choice([1, 1, 3]))]
        pool = values if step % 2 else ["x", {"k": 1}]
        cases = [{key: rng.choice(pool) for key in rng.choice(keys)} for _ in range(20)]
        sink.write(make_batch(["x"] * 20, attributes=cases, start_ns=START_NS + step * 10**10))
        wanted += cases
    sink.close()
    assert [record.attributes for record in _read(config, oldest_first=True)] == wanted


def test_too_deep_attributes_become_marked_text(tmp_path: Path) -> None:
    config = _config(tmp_path)
    deep: Any = "end"
    for _ in range(40):
        deep = {"a": deep}
    _written(config, make_batch(["deep"], attributes={"deep": deep, "user_id": "x"})).close()
    (record,) = _read(config)
    text = str(record.attributes)
    assert "[too deep] " in text
    assert "end" in text
    assert record.attributes["user_id"] == "x"


def test_rows_out_of_order_and_twice_in_one_batch_are_stored_once_in_order(tmp_path: Path) -> None:
    config = _config(tmp_path)
    late, early = make_batch(["late"], start_ns=START_NS + 10**9), make_batch(["early"])
    _written(config, Batch.concat([late, early, late])).close()
    assert [record.message for record in _read(config, oldest_first=True)] == ["early", "late"]


def test_order_is_that_of_time_and_id_whatever_ties() -> None:
    rng = random.Random(3)
    for _ in range(200):
        count = rng.randint(0, 12)
        times = [START_NS + rng.randint(0, 5) for _ in range(count)]
        batch = make_batch([str(index) for index in range(count)])
        batch.times, batch.stamps = times, [START_NS] * count
        batch.hashes = [rng.randint(0, 3) for _ in range(count)]
        keys = list(zip(times, batch.ids, strict=True))
        assert [keys[index] for index in Mapping.order(batch)] == sorted(set(keys))


def test_times_before_1970_and_beyond_2286_are_kept_and_impossible_ones_refused(tmp_path: Path) -> None:
    config = _config(tmp_path)
    times = [-1, 0, 1, 10**18 - 1, 10**19 + 7]
    sink = _written(config, *(make_batch(["x"], start_ns=time) for time in times))
    with pytest.raises(PermanentError, match="years 1000 to 9999"):
        sink.write(make_batch(["never"], start_ns=10**21))
    sink.close()
    assert [record.time_ns for record in _read(config, oldest_first=True)] == times


def test_time_bounds_are_exact_to_the_nanosecond_and_newest_comes_first(tmp_path: Path) -> None:
    config = _config(tmp_path)
    _written(config, make_batch([str(i) for i in range(9)], step_ns=1)).close()
    got = _read(config, since=START_NS + 2, until=START_NS + 6)
    assert [record.message for record in got] == ["5", "4", "3", "2"]
    assert [record.message for record in _read(config, limit=2)] == ["8", "7"]
    assert [record.message for record in _read(config, limit=2, oldest_first=True)] == ["0", "1"]


def test_reading_pages_through_more_rows_than_one_page(tmp_path: Path) -> None:
    config = _config(tmp_path)
    batch = make_batch([f"line {i}" for i in range(4500)], step_ns=1)
    _written(config, batch).close()
    assert [record.id for record in _read(config, oldest_first=True)] == batch.ids
    assert [record.id for record in _read(config)] == batch.ids[::-1]


@pytest.mark.parametrize(
    "text",
    ["level:error", "level>=warn", "service:api", "service:web level:info", "time", "user_id:7", "-level:error",
     "host:host-1", "stream:stdout", "source:docker", "container:web-1", '"100%"', "level:info OR user_id:7"],
)  # fmt: skip
def test_conditions_find_what_they_would_find_in_memory(tmp_path: Path, text: str) -> None:
    config = _config(tmp_path)
    api = make_batch(
        ["time out", "100% done", "Time"], level=["error", "info", "warn"], attributes=[{"user_id": 7}, {}, {"a": 1}],
        resource=make_resource("api"),
    )  # fmt: skip
    web = make_batch(["time", "?"], level="info", resource=make_resource("web"), start_ns=START_NS + 10**9)
    _written(config, api, web).close()
    condition = compile_condition(text)
    wanted = [record.id for record in (*api.records(), *web.records()) if condition.matches(record)]
    assert [record.id for record in _read(config, condition=condition, oldest_first=True)] == wanted


def test_rows_that_the_application_wrote_itself_are_read(tmp_path: Path) -> None:
    config = _config(tmp_path)
    _written(config).close()
    with sqlite_database(config.path) as db:
        db.execute(
            "INSERT INTO activity_logs (id, level, message, details, created_at)"
            " VALUES ('own', 'WARNING', NULL, '[1', '2026-01-01 00:00:00')"
        )
    (record,) = _read(config, condition=compile_condition("level:warn"))
    assert (record.id, record.level, record.message, record.attributes) == ("own", "warn", "", {"details": "[1"})


def test_retention_deletes_old_rows_at_most_hourly(tmp_path: Path) -> None:
    config = _config(tmp_path, retention="1d")
    now = [START_NS / 1e9 + DAY + 10]
    sink = _written(config, make_batch(["old"]), now=lambda: now[0])
    assert _read(config) == []
    sink.write(make_batch(["soon old"], start_ns=START_NS + 20 * 10**9))
    now[0] += 60
    sink.write(make_batch(["young"], start_ns=START_NS + DAY * 10**9))
    assert len(_read(config)) == 2
    now[0] += 3600
    sink.write(make_batch(["younger"], start_ns=START_NS + DAY * 10**9 + 5))
    sink.close()
    assert [record.message for record in _read(config)] == ["younger", "young"]


def test_max_size_keeps_the_file_small_and_the_newest_rows(tmp_path: Path) -> None:
    config = _config(tmp_path, max_size="4MiB")
    sink = SqliteSink(config)
    sink.open()
    for index in range(12):
        sink.write(make_batch(["x" * 500] * 2000, start_ns=START_NS + index * 10**10))
    sink.close()
    assert Path(config.path).stat().st_size < 7 << 20
    (newest,) = _read(config, limit=1)
    assert newest.time_ns == START_NS + 11 * 10**10 + 1999 * 1_000_001
    assert _read(config, limit=1, oldest_first=True)[0].time_ns > START_NS


def test_lock_of_another_program_is_retryable(tmp_path: Path) -> None:
    config = _config(tmp_path, busy_timeout="10ms")
    sink = _written(config)
    with sqlite_database(config.path) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(RetryableError) as caught:
            sink.write(make_batch(["x"]))
        assert caught.value.code == "BUSY"
        assert not isinstance(caught.value, ParkedError)
        other.execute("ROLLBACK")
    sink.write(make_batch(["x"]))
    sink.close()
    assert len(_read(config)) == 1


def test_full_disk_is_retryable_and_leaves_nothing_half_done(tmp_path: Path) -> None:
    config = _config(tmp_path)
    sink = _written(config, make_batch(["first"]))
    assert sink._db is not None
    pages = sink._db.execute("PRAGMA page_count").get
    sink._db.execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(RetryableError, match="free disk space") as caught:
        sink.write(make_batch(["x" * 10_000] * 50, start_ns=START_NS + 10**12))
    assert caught.value.code == "FULL"
    assert len(_read(config)) == 1
    sink._db.execute("PRAGMA max_page_count = 1000000")
    sink.write(make_batch(["second"], start_ns=START_NS + 10**13))
    sink.close()
    assert len(_read(config)) == 2


def test_record_that_sqlite_cannot_take_is_refused_and_nothing_of_its_batch_stays(tmp_path: Path) -> None:
    """The lock is given back as well: others write at once."""
    config = _config(tmp_path, busy_timeout="10ms")
    sink = _written(config)
    assert sink._db is not None
    sink._db.limit(apsw.SQLITE_LIMIT_LENGTH, 100_000)
    with pytest.raises(PermanentError, match="larger than SQLite takes") as caught:
        sink.write(make_batch(["fits", "x" * 200_000, "never reached"]))
    assert caught.value.code == "TOOBIG"
    bug = make_batch(["fits", "no text", "never reached"])
    bug.messages = ["fits", object(), "never reached"]  # type: ignore[list-item]
    with pytest.raises(TypeError):
        sink.write(bug)
    assert not sink._db.in_transaction
    with sqlite_database(config.path) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("ROLLBACK")
    assert _read(config) == []
    sink.write(make_batch(["fits", "too"]))
    sink.close()
    assert [record.message for record in _read(config)] == ["too", "fits"]


def test_threads_may_take_turns(tmp_path: Path) -> None:
    config = _config(tmp_path)
    sink = SqliteSink(config)

    def elsewhere(*calls: Any) -> None:
        for call, *arguments in calls:
            with ThreadPoolExecutor(1) as thread:
                thread.submit(call, *arguments).result()

    elsewhere((sink.open,))
    assert sink._db is not None
    assert not sink._db.open_flags & apsw.SQLITE_OPEN_NOMUTEX, "APSW's guard against two threads rests on the mutex"
    batches = [make_batch(["x"] * 500, start_ns=START_NS + index * 10**10) for index in range(3)]
    elsewhere(*((sink.write, batch) for batch in batches), (sink.healthcheck,), (sink.close,))
    assert len(_read(config)) == 1500


def test_closing_lets_go_of_the_file_whatever_is_half_read(tmp_path: Path) -> None:
    config = _config(tmp_path)
    sink = _written(config, make_batch(["one", "two"]))
    assert sink._db is not None
    rows = sink._db.execute("SELECT id FROM activity_logs; SELECT 1")
    next(rows)
    sink.close()
    assert not Path(config.path + "-wal").exists()
    with pytest.raises(apsw.CursorClosedError):
        next(rows)


@pytest.mark.parametrize(
    ("code", "kind", "name"),
    [
        (apsw.SQLITE_BUSY_SNAPSHOT, RetryableError, "BUSY"),
        (apsw.SQLITE_LOCKED_SHAREDCACHE, RetryableError, "LOCKED"),
        (apsw.SQLITE_FULL, RetryableError, "FULL"),
        (apsw.SQLITE_IOERR_WRITE, RetryableError, "IOERR"),
        (apsw.SQLITE_NOMEM, RetryableError, "NOMEM"),
        (apsw.SQLITE_CANTOPEN_ISDIR, ParkedError, "CANTOPEN"),
        (apsw.SQLITE_READONLY_DBMOVED, ParkedError, "READONLY"),
        (apsw.SQLITE_CORRUPT_INDEX, ParkedError, "CORRUPT"),
        (apsw.SQLITE_ERROR, ParkedError, "ERROR"),
        (apsw.SQLITE_CONSTRAINT_NOTNULL, PermanentError, "CONSTRAINT"),
        (apsw.SQLITE_TOOBIG, PermanentError, "TOOBIG"),
    ],
)
def test_errors_are_sorted_by_their_primary_code(code: int, kind: type[SinkError], name: str) -> None:
    error = _error(apsw.exception_for(code), "logs.db")
    assert (type(error), error.code) == (kind, name)


def test_errors_without_a_code_of_sqlites_park(tmp_path: Path) -> None:
    sink = _written(_config(tmp_path))
    assert sink._db is not None
    sink._db.close()
    with pytest.raises(ParkedError) as caught:
        sink.write(make_batch(["x"]))
    assert caught.value.code == "ERROR"


def test_text_of_another_program_that_is_no_utf8_is_told(tmp_path: Path) -> None:
    config = _config(tmp_path)
    _written(config, make_batch(["x"])).close()
    with sqlite_database(config.path) as db:
        db.execute("UPDATE activity_logs SET message = CAST(X'636166E9' AS TEXT)")
    with pytest.raises(ParkedError, match=r"logs\.db: 'utf-8' codec can't decode"):
        _read(config)


def test_path_that_is_a_directory_parks_the_sink(tmp_path: Path) -> None:
    config = _config(tmp_path)
    Path(config.path).mkdir(parents=True)
    with pytest.raises(ParkedError, match="unable to open database file; check that the directory exists") as caught:
        SqliteSink(config).open()
    assert caught.value.code == "CANTOPEN"


def test_file_that_is_no_database_parks_the_sink(tmp_path: Path) -> None:
    config = _config(tmp_path)
    Path(config.path).parent.mkdir()
    Path(config.path).write_bytes(b"this is not a database" * 100)
    with pytest.raises(ParkedError, match="choose another path") as caught:
        SqliteSink(config).open()
    assert caught.value.code == "NOTADB"


def test_path_that_cannot_be_made_parks_the_sink(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file where the directory should be")
    with pytest.raises(ParkedError, match="directory"):
        SqliteSink(_config(tmp_path)).open()


def test_missing_table_parks_the_sink_until_it_is_opened_again(tmp_path: Path) -> None:
    config = _config(tmp_path)
    sink = _written(config, make_batch(["x"]))
    with sqlite_database(config.path) as db:
        db.execute("DROP TABLE activity_logs")
    with pytest.raises(ParkedError):
        sink.write(make_batch(["x"]))
    sink.open()
    sink.write(make_batch(["x"]))
    sink.close()
    assert len(_read(config)) == 1


def test_reader_of_a_file_that_is_not_there_says_so_and_makes_none(tmp_path: Path) -> None:
    config = _config(tmp_path)
    with pytest.raises(ParkedError, match="no such file"):
        _read(config)
    assert not Path(config.path).exists()


def test_own_columns_are_added_to_a_table_that_lacks_them(tmp_path: Path) -> None:
    _written(_config(tmp_path), make_batch(["x"])).close()
    config = _config(tmp_path, columns={"user_id": "user_id", "trace": "trace.id"})
    _written(config, make_batch(["y"], attributes={"trace.id": "t", "action": "a"}, start_ns=START_NS + 5)).close()
    assert _rows(config, "SELECT trace FROM activity_logs ORDER BY created_at, id") in (
        [(None,), ("t",)],
        [("t",), (None,)],
    )
    assert {"trace.id": "t", "action": "a"} in [record.attributes for record in _read(config)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"table": "a b"}, "not a table name"),
        ({"columns": {"id": "x"}}, "filled by shipper itself"),
        ({"columns": {"a;": "x"}}, "not a column name"),
        ({"columns": {"a": "x", "b": "x"}}, "named twice"),
        ({"retention": "0s"}, "would delete all"),
        ({"max_size": "big"}, "not a size"),
    ],
)
def test_bad_options_are_told(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _config(tmp_path, **options)


def test_quotes_and_nul_in_names_of_containers_are_text(tmp_path: Path) -> None:
    config = _config(tmp_path)
    resource = make_resource("it's\0\"; DROP TABLE activity_logs; --")
    batch = make_batch(["x"], resource=resource)
    _written(config, batch).close()
    (record,) = _read(config)
    assert record.resource.attributes == resource.attributes


def test_database_stays_in_the_users_own_hands(tmp_path: Path) -> None:
    config = _config(tmp_path)
    _written(config, make_batch(["x"])).close()
    assert stat.S_ISREG(Path(config.path).stat().st_mode)
    assert not Path(config.path + "-wal").exists()


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_files_are_for_this_user_alone_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    config = _config(tmp_path)
    before = os.umask(umask)
    try:
        sink = _written(config, make_batch(["x"]))
    finally:
        os.umask(before)
    modes = {name: stat.S_IMODE(Path(config.path + name).stat().st_mode) for name in ("", "-wal", "-shm")}
    sink.close()
    assert modes == {"": 0o600, "-wal": 0o600, "-shm": 0o600}
    assert stat.S_IMODE(Path(config.path).parent.stat().st_mode) & 0o077 == 0


def test_file_that_is_there_keeps_its_mode(tmp_path: Path) -> None:
    config = _config(tmp_path)
    _written(config).close()
    Path(config.path).chmod(0o640)
    _written(config).close()
    assert stat.S_IMODE(Path(config.path).stat().st_mode) == 0o640


# Tables that are somebody else's


def _made(tmp_path: Path, *statements: str) -> SqliteConfig:
    config = _config(tmp_path)
    Path(config.path).parent.mkdir()
    Path(config.path).touch()
    with sqlite_database(config.path) as db:
        for statement in statements:
            db.execute(statement)
    return config


WHOLE = (
    "CREATE TABLE activity_logs ({}, level TEXT, message TEXT, details TEXT, user_id {}, action TEXT, ip_address TEXT,"
    " user_agent TEXT, created_at TEXT, service TEXT, container TEXT, stream TEXT, host TEXT, source TEXT, shipper TEXT{})"
)


def _schema(config: SqliteConfig) -> list[Any]:
    return _rows(config, "SELECT sql FROM sqlite_schema WHERE name NOT LIKE '%_resources'")


@pytest.mark.parametrize(
    ("ddl", "message"),
    [
        (WHOLE.format("id INTEGER PRIMARY KEY", "TEXT", ""), "id is INTEGER and must be TEXT"),
        (WHOLE.format("id TEXT", "TEXT", ""), "would show twice"),
        (WHOLE.format("id TEXT UNIQUE", "TEXT", ", tenant TEXT NOT NULL"), "tenant needs a value"),
        ("CREATE TABLE activity_logs (id TEXT PRIMARY KEY, message TEXT)", "run shipper prepare"),
    ],
)
def test_table_of_another_program_parks_untouched(tmp_path: Path, ddl: str, message: str) -> None:
    config = _made(tmp_path, ddl, "CREATE TABLE theirs (a)")
    before = Path(config.path).read_bytes()
    sink = SqliteSink(config)
    list(sink.examine())
    assert Path(config.path).read_bytes() == before, "looking changes not a byte"
    with pytest.raises(ParkedError, match=message) as caught:
        sink.open()
    assert "ALTER" not in str(caught.value)
    assert (ddl,) in _schema(config)


def test_file_with_other_tables_keeps_its_journal_mode(tmp_path: Path) -> None:
    config = _made(tmp_path, "CREATE TABLE theirs (a)")
    _written(config, make_batch(["x"])).close()
    assert _rows(config, "PRAGMA journal_mode") == [("delete",)]
    assert len(_read(config)) == 1


@pytest.mark.parametrize("key", ["id TEXT UNIQUE", "seq INTEGER PRIMARY KEY, id TEXT UNIQUE"])
def test_row_that_meets_a_unique_key_of_the_users_is_refused_and_a_repeat_is_not(tmp_path: Path, key: str) -> None:
    config = _made(tmp_path, WHOLE.format(key, "TEXT", ", UNIQUE (user_id, action)"))
    login = {"user_id": "7", "action": "login"}
    batch = make_batch(["login 1", "login 2", "logout"], attributes=[login, login, {**login, "action": "logout"}])
    sink = _written(config, batch.select([0, 2]))
    sink.write(batch.select([0, 2]))
    with pytest.raises(PermanentError, match=r"UNIQUE constraint failed: activity_logs\.user_id"):
        sink.write(batch)
    sink.close()
    assert [record.message for record in _read(config, oldest_first=True)] == ["login 1", "logout"]


@pytest.mark.parametrize(
    ("kind", "value", "stored"),
    [
        ("INTEGER", "007", None),
        ("INTEGER", 7, 7),
        ("INT NOT NULL", "x", 0),
        ("REAL", "1.50", None),
        ("NUMERIC", 3, None),
    ],
)
def test_value_that_a_column_would_change_stays_in_details(tmp_path: Path, kind: str, value: Any, stored: Any) -> None:
    config = _made(tmp_path, WHOLE.format("id TEXT UNIQUE", kind, ""))
    sink = _written(config, make_batch(["x"], attributes={"user_id": value}))
    (finding,) = [finding for finding in sink.examine() if finding.what == "table"]
    sink.close()
    assert _rows(config, "SELECT user_id FROM activity_logs") == [(stored,)]
    assert _read(config)[0].attributes == {"user_id": value}
    assert (finding.verdict, "user_id is" in finding.evidence) == ("warn", True)


def test_examine_tells_directory_space_lock_and_journal(tmp_path: Path) -> None:
    def verdicts(path: Path) -> dict[str, str]:
        made = SqliteSink(SqliteConfig(type="sqlite", path=str(path), busy_timeout="0.05s"))
        try:
            return {finding.what: finding.verdict for finding in made.examine()}
        finally:
            made.close()

    path = tmp_path / "sub" / "logs.db"
    assert verdicts(path)["directory"] == "ok"
    assert not path.parent.exists(), "looking makes nothing"
    sink = SqliteSink(SqliteConfig(type="sqlite", path=str(path)))
    sink.open()
    sink.close()
    found = verdicts(path)
    assert (found["lock"], found["journal"]) == ("ok", "ok")
    with sqlite_database(path) as other:
        other.execute("BEGIN IMMEDIATE")
        assert verdicts(path)["lock"] == "fail"
    (tmp_path / "plain").write_text("")
    assert verdicts(tmp_path / "plain" / "logs.db") == {"directory": "fail"}
