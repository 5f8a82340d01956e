"""What arrived against what was written: the one comparison that every promise of delivery comes down to."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path

from shipper.testing.daemon import eventually


def difference(written: Iterable[str], arrived: Iterable[str]) -> str:
    """Say what is missing, doubled or unknown in ``arrived``, or ``""`` when both hold the same lines as often."""
    expected, found = Counter(written), Counter(arrived)
    missing = expected - found
    extra = found - expected
    doubled = Counter({line: count for line, count in extra.items() if line in expected})
    unknown = extra - doubled
    told = [
        f"{sum(lines.values())} {word} of {sum(expected.values())}, such as {[line[:80] for line in list(lines)[:3]]}"
        for word, lines in (("missing", missing), ("doubled", doubled), ("unknown", unknown))
        if lines
    ]
    return "; ".join(told)


def wait_for(written: Iterable[str], arrived: Callable[[], Iterable[str]], *, timeout: float = 20.0) -> str:
    """Wait until as many lines arrived as were written; give the `difference` that is left then."""
    expected = list(written)
    eventually(lambda: len(list(arrived())) >= len(expected), timeout=timeout)
    return difference(expected, arrived())


def sqlite_rows(path: Path, columns: str = "message", *, table: str = "activity_logs") -> list[tuple[str, ...]]:
    """The rows of a sqlite sink in the order of their times; none while there is no database or no table."""
    if not path.exists():
        return []
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as database:
        try:
            return database.execute(f"SELECT {columns} FROM {table} ORDER BY created_at, id").fetchall()  # noqa: S608
        except sqlite3.OperationalError as error:
            if "no such table" in str(error) or "unable to open" in str(error):
                return []
            raise


def sqlite_messages(path: Path, *, table: str = "activity_logs") -> list[str]:
    """The messages in a sqlite sink's table in the order of their times."""
    return [row[0] for row in sqlite_rows(path, table=table)]
