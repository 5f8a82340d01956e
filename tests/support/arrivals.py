"""What arrived against what was written: the one comparison that every promise of delivery comes down to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import apsw

from support.daemon import eventually


def difference(written: Iterable[str], arrived: Iterable[str]) -> str:
    """Say what is missing, doubled or unknown in ``arrived``, or ``""`` when both hold the same lines as often."""
    expected, found = Counter(written), Counter(arrived)
    missing = expected - found
    extra = found - expected
    doubled = Counter({line: count for line, count in extra.items() if line in expected})
    unknown = extra - doubled
    differences = [
        f"{sum(lines.values())} {word} of {sum(expected.values())}, such as {[line[:80] for line in list(lines)[:3]]}"
        for word, lines in (("missing", missing), ("doubled", doubled), ("unknown", unknown))
        if lines
    ]
    return "; ".join(differences)


def wait_for(written: Iterable[str], arrived: Callable[[], Iterable[str]], *, timeout: float = 20.0) -> str:
    """Wait until as many lines arrived as were written; give the `difference` that is left then."""
    expected = list(written)
    eventually(lambda: len(list(arrived())) >= len(expected), timeout=timeout)
    return difference(expected, arrived())


@contextmanager
def sqlite_database(path: Path | str, *, read_only: bool = False) -> Iterator[apsw.Connection]:
    """The database of a sqlite sink, in autocommit mode, opened as the sink itself opens it.

    Never with the standard library's sqlite3: if the sink is open in this process, closing the file there drops the
    locks that the sink holds.
    """
    flags = apsw.SQLITE_OPEN_READONLY if read_only else apsw.SQLITE_OPEN_READWRITE
    database = apsw.Connection(str(path), flags=flags)
    try:
        database.set_busy_timeout(10_000)
        yield database
    finally:
        database.close(force=True)


def sqlite_rows(path: Path, columns: str = "message", *, table: str = "activity_logs") -> list[tuple[str, ...]]:
    """The rows of a sqlite sink in the order of their times; none while there is no database or no table."""
    if not path.exists():
        return []
    try:
        with sqlite_database(path, read_only=True) as database:
            rows = database.execute(f"SELECT {columns} FROM {table} ORDER BY created_at, id")  # noqa: S608
            return cast("list[tuple[str, ...]]", rows.fetchall())
    except apsw.CantOpenError:
        return []
    except apsw.SQLError as error:
        if "no such table" in str(error):
            return []
        raise


def sqlite_messages(path: Path, *, table: str = "activity_logs") -> list[str]:
    """The messages in a sqlite sink's table in the order of their times."""
    return [row[0] for row in sqlite_rows(path, table=table)]
