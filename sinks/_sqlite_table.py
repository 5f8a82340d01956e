"""What a table of an SQLite file is like: whose it is, what its columns hold, what it has against our rows."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

from sinks import _sql
from sinks._sql_fit import Fit

if TYPE_CHECKING:
    import apsw

_WIDEST = (-(2**63), 2**63 - 1)
_INTEGER, _TEXT = "INTEGER", "TEXT"


class Column(msgspec.Struct, frozen=True):
    """A column: its type as it was declared, whether it may be NULL, and whether it has a value where a row has none."""

    declared: str
    nullable: bool
    given: bool

    @property
    def affinity(self) -> str:
        """What becomes of a text in it, by the rules of https://www.sqlite.org/datatype3.html."""
        name = self.declared.upper()
        if "INT" in name:
            return _INTEGER
        if any(word in name for word in ("CHAR", "CLOB", "TEXT")):
            return _TEXT
        return "BLOB" if "BLOB" in name or not name else "NUMERIC"

    def fit(self) -> Fit | None:
        """Say what a text must be so that it comes back from here as it was; ``None`` when any does, and NULL."""
        filler = None if self.nullable else ""
        if self.affinity == _INTEGER:
            return Fit(bounds=_WIDEST, filler=None if filler is None else "0")
        if self.affinity == "NUMERIC":
            return Fit(closed=True, filler=filler)
        return None if filler is None else Fit(filler=filler)


class Table(msgspec.Struct, frozen=True):
    """A table that is there. ``keys`` are the columns of each unique key, ``others`` other tables of the file."""

    columns: dict[str, Column]
    keys: list[tuple[str, ...]]
    rowid: bool
    resources: bool
    others: bool

    @property
    def ours(self) -> bool:
        """Whether shipper made it: it has our key without a rowid, and our companion."""
        return self.resources and not self.rowid and ("created_at", "id") in self.keys

    @property
    def key(self) -> tuple[str, ...]:
        """The columns by which a repeated row is told; empty if it cannot be."""
        return next((key for key in self.keys if "id" in key and set(key) <= {"id", "created_at"}), ())

    def lacks(self, names: tuple[str, ...]) -> list[str]:
        """Give the columns that it lacks."""
        return [name for name in names if name not in self.columns]

    def fits(self, names: tuple[str, ...]) -> dict[str, Fit]:
        """Give the columns of ours that hold less than any text."""
        found = {}
        for name in names:
            column = self.columns.get(name)
            if column is None or name in {"id", "created_at", "level", "message", "source"}:
                continue
            fit = column.fit()
            if name == "details" and fit is not None:
                fit = Fit(filler="{}")
            if fit is not None:
                found[name] = fit
        return found

    def faults(self, names: tuple[str, ...]) -> list[str]:
        """Say why records would be lost, changed or doubled in it; columns that it lacks are not looked at."""
        found = []
        for name in (*_sql.FIRST, *_sql.LAST, _sql.MARKER):
            column = self.columns.get(name)
            if column is not None and column.affinity not in {_TEXT, "BLOB"}:
                found.append(f"{name} is {column.declared} and must be TEXT")
        if not self.key:
            found.append(
                "no primary or unique key is of id (alone or with created_at), so a repeated row would show twice"
            )
        found += [
            f"{name} needs a value in each row, and shipper has none for it"
            for name, column in self.columns.items()
            if name not in names and not column.nullable and not column.given
        ]
        return found


def look(db: apsw.Connection, table: str) -> Table | None:
    """Look at a table; ``None`` when there is none."""
    names = {str(row[0]) for row in db.execute("SELECT name FROM sqlite_schema WHERE type IN ('table', 'view')")}
    names = {name for name in names if not name.startswith("sqlite_")}
    rows = db.execute(f'PRAGMA table_xinfo("{table}")').fetchall()
    if not rows:
        return None
    ((_, _, _, _, without_rowid, _),) = db.execute(f'PRAGMA table_list("{table}")').fetchall()
    primary = tuple(str(row[1]).lower() for row in sorted(rows, key=lambda row: int(str(row[5]))) if row[5])
    automatic = primary if len(primary) == 1 and not without_rowid else ()
    columns = {
        str(name): Column(
            declared=str(kind or ""),
            nullable=not notnull,
            given=default is not None or bool(hidden) or (automatic == (str(name).lower(),) and _is_integer(kind)),
        )
        for _, name, kind, notnull, default, _, hidden in rows
    }
    keys = [primary] if primary else []
    for _, index, unique, _, partial in db.execute(f'PRAGMA index_list("{table}")').fetchall():
        if unique and not partial:
            parts = db.execute("SELECT name FROM pragma_index_info(?)", (index,)).fetchall()
            keys.append(tuple(str(part or "an expression").lower() for (part,) in parts))
    ours = {table, f"{table}_resources"}
    return Table(
        columns=columns,
        keys=keys,
        rowid=not without_rowid,
        resources=f"{table}_resources" in names,
        others=bool(names - ours),
    )


def others(db: apsw.Connection, table: str) -> bool:
    """Tell whether the file holds tables that are not of this sink."""
    ours = (table, f"{table}_resources")
    found = db.execute(
        "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite!_%' ESCAPE '!'"
        " AND name NOT IN (?, ?)",
        ours,
    )
    return bool(found.get)


def _is_integer(kind: object) -> bool:
    return bool(re.fullmatch("integer", str(kind or ""), re.IGNORECASE))
