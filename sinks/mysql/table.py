"""What the table is like: whose it is, what its columns hold, and what it has against our rows. Nothing is changed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec

from sinks import _sql
from sinks._sql_fit import Fit, levels_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sinks.mysql.config import MysqlConfig
    from sinks.mysql.session import Session

#: Stands in the comment of a table that shipper made, or that its owner hands over to it.
OURS = "kept by shipper"
_TEXT = frozenset({"char", "varchar", "tinytext", "text", "mediumtext", "longtext"})
_LONG = frozenset({"json", "mediumtext", "longtext"})
_BITS = {"tinyint": 8, "smallint": 16, "mediumint": 24, "int": 32, "bigint": 64}
_CHARSETS = {"utf8mb4": "", "utf8mb3": "utf8mb3", "utf8": "utf8mb3", "latin1": "latin1"}
_WORD = re.compile(r"'((?:[^']|'')*)'")
_ID = 36  # characters
_MUST = {
    "id": f"a text of {_ID} characters",
    "created_at": "datetime(6)",
    "level": "a text or an ENUM of levels",
    "message": "a text",
    "details": "json or longtext",
}


class Column(msgspec.Struct, frozen=True):
    """A column as information_schema tells it.

    ``width`` is in characters, ``None`` for a type without one. ``given`` tells that it has a value where a row brings
    none.
    """

    kind: str
    definition: str
    width: int | None
    precision: int | None
    charset: str
    nullable: bool
    given: bool
    generated: bool

    @property
    def text(self) -> bool:
        """Whether it holds texts."""
        return self.kind in _TEXT

    @property
    def words(self) -> list[str]:
        """The words of an ENUM."""
        return [word.replace("''", "'") for word in _WORD.findall(self.definition)] if self.kind == "enum" else []

    def fit(self) -> Fit | None:
        """Say what a text must be for it; ``None`` when it holds any text of its width, and NULL."""
        filler = None if self.nullable else ""
        if self.kind == "enum":
            words = self.words
            filler = filler if filler is None or not words or "" in words else words[0]
            return Fit(words=frozenset(words), filler=filler)
        if self.kind in _BITS:
            bits = _BITS[self.kind]
            unsigned = "unsigned" in self.definition
            bounds = (0, 2**bits - 1) if unsigned else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
            return Fit(bounds=bounds, filler=None if self.nullable else "0")
        if not self.text:
            return Fit(closed=True, filler=filler)
        charset = _CHARSETS.get(self.charset, "ascii")
        if not charset and self.nullable and self.kind != "char":
            return None
        return Fit(width=self.width, charset=charset, trimmed=self.kind == "char", filler=filler)


class Table(msgspec.Struct, frozen=True):
    """A table that is there. ``keys`` are the unique ones, by name, each with its columns and whether they are whole."""

    columns: dict[str, Column]
    keys: dict[str, tuple[tuple[str, ...], bool]]
    indexes: frozenset[str]
    comment: str
    row_format: str
    resources: bool

    @property
    def ours(self) -> bool:
        """Whether shipper made it: its comment says so, or, of a table without one, key, index and companion do."""
        if OURS in self.comment:
            return True
        primary = self.keys.get("PRIMARY", ((), True))[0]
        return self.resources and primary == ("created_at", "id") and "by_level" in self.indexes

    def lacks(self, config: MysqlConfig) -> list[str]:
        """Give the columns that it lacks, the marker's among them."""
        return [name for name in _sql.Mapping(config.columns).names if name not in self.columns]

    @property
    def marker(self) -> bool:
        """Whether it has the column ``shipper``, as a text."""
        return _sql.MARKER in self.columns and self.columns[_sql.MARKER].text

    @property
    def id_keys(self) -> dict[str, tuple[str, ...]]:
        """The unique keys that tell a repeated row: of ``id``, alone or with ``created_at``."""
        return {
            name: columns
            for name, (columns, whole) in self.keys.items()
            if whole and "id" in columns and set(columns) <= {"id", "created_at"}
        }

    @property
    def own_keys(self) -> dict[str, tuple[str, ...]]:
        """The unique keys that may refuse a row that is no repeat."""
        return {
            name: columns
            for name, (columns, _) in self.keys.items()
            if name not in self.id_keys and not any(self._numbers(column) for column in columns)
        }

    def _numbers(self, name: str) -> bool:
        column = self.columns.get(name)
        return column is not None and "auto_increment" in column.definition

    def faults(self, config: MysqlConfig) -> list[str]:
        """Say why records would be lost, changed or doubled in it; columns that it lacks are not looked at."""
        found = []
        for name, must in _MUST.items():
            column = self.columns.get(name)
            if column is not None and not _serves(name, column):
                found.append(f"{name} is {column.definition} and must be {must}")
        for name in _sql.LAST[1:]:
            column = self.columns.get(name)
            if column is not None and not column.text:
                found.append(f"{name} is {column.definition} and must be a text")
        if "id" in self.columns and not self.id_keys:
            found.append(
                "no primary or unique key is of id (alone or with created_at), so a repeated row would show twice"
            )
        sent = set(_sql.Mapping(config.columns).names)
        for name, column in self.columns.items():
            if name in config.columns and not column.nullable and (fit := column.fit()) is not None and fit.closed:
                found.append(f"{name} is {column.definition} and may not be NULL, leave it out of columns")
            if name in sent and column.generated:
                found.append(f"{name} is generated" + (", leave it out of columns" if name in config.columns else ""))
            elif name not in sent and not column.nullable and not column.given:
                found.append(f"{name} needs a value in each row, and shipper has none for it")
        return found

    def fits(self, config: MysqlConfig) -> dict[str, Fit]:
        """Give the columns of ours that hold less than any text of their width, or no NULL."""
        found: dict[str, Fit] = {}
        for name in _sql.Mapping(config.columns).names:
            column = self.columns.get(name)
            if column is None or name in {"id", "created_at", "level"} or (name == _sql.MARKER and not self.marker):
                continue
            fit = _details(column) if name == "details" else column.fit()
            if name in {"message", "source"} and fit is not None:  # they are never NULL
                fit = msgspec.structs.replace(fit, filler=None)
            if name == "message" and fit is None and column.width is not None:
                fit = Fit(width=column.width)
            if fit is not None and fit != Fit(width=None if name == "message" else fit.width):
                found[name] = fit
        return found

    def levels(self) -> dict[str, str] | None:
        """Give what stands for each level; ``None`` where each stands for itself."""
        levels = _levels(self.columns["level"]) if "level" in self.columns else {}
        return None if all(name == word for name, word in levels.items()) else levels

    def widths(self) -> dict[str, int]:
        """Give the characters of each column that has a limit."""
        return {name: column.width for name, column in self.columns.items() if column.width is not None}

    def notes(self, config: MysqlConfig) -> Iterator[str]:
        """Say, column by column, what it does not hold and what becomes of that."""
        fits = self.fits(config)
        for name, fit in fits.items():
            column = self.columns[name]
            attribute = name in config.columns
            instead = "stands in details" if attribute else "is cut there and stays whole beside it"
            if fit.closed or fit.bounds is not None or fit.words is not None:
                yield f"{name} is {column.definition}: a value that it does not hold {instead}"
            elif name == "message" and fit.width is not None:
                yield f"message holds {fit.width} characters: a longer one is cut there and stands whole in details"
            if fit.charset and name not in {"details", _sql.MARKER}:
                whole = "stands in details" if attribute else "has ? there for it and stays whole beside it"
                yield f"{name} is {column.charset}: a text with a character that this lacks, such as an emoji, {whole}"
            if fit.filler is not None and attribute:
                yield f"{name} may not be NULL: {fit.filler!r} stands there in rows that have no {config.columns[name]}"
        levels = self.levels()
        if levels is not None:
            others = ", ".join(f"{word} for {level}" for level, word in levels.items() if word != level)
            yield f"level is {self.columns['level'].definition}: {others} stands there"
        for name, columns in self.own_keys.items():
            yield f"the unique key {name} ({', '.join(columns)}) refuses rows: they go to the dead letters"
        if self.row_format.lower() in {"compact", "redundant"}:
            yield f"the row format is {self.row_format}: rows with many long values may be refused (1118, 1709)"


def _serves(name: str, column: Column) -> bool:
    """Tell whether a column that no row can do without holds what it must."""
    if name == "id":
        return column.text and (column.width or _ID) >= _ID
    if name == "created_at":
        return column.kind == "datetime" and column.precision == 6
    if name == "level":
        return bool(_levels(column))
    return column.kind in _LONG if name == "details" else column.text


def _levels(column: Column) -> dict[str, str]:
    if column.kind == "enum":
        return levels_for(column.words)
    if not column.text:
        return {}
    return levels_for(
        name for name in ("trace", "debug", "info", "warn", "error", "fatal") if len(name) <= (column.width or 5)
    )


def _details(column: Column) -> Fit | None:
    charset = "" if column.kind == "json" else _CHARSETS.get(column.charset, "ascii")
    filler = None if column.nullable else "{}"
    return Fit(charset=charset, filler=filler) if charset or filler else None


def look(config: MysqlConfig, session: Session) -> Table | None:
    """Look at the table; ``None`` when there is none, or none that the account may see."""
    place = (config.database, config.table)
    about = _rows(
        session,
        "SELECT TABLE_COMMENT, ROW_FORMAT FROM information_schema.TABLES WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s",
        place,
    )
    if not about:
        return None
    names = {name.lower(): name for name in _sql.Mapping(config.columns).names}
    columns = {names.get(name.lower(), name): column for name, column in _columns(session, place)}
    keys: dict[str, list[tuple[str, bool]]] = {}
    indexes = set()
    for name, column, common, prefix in _rows(
        session,
        "SELECT INDEX_NAME, COLUMN_NAME, NON_UNIQUE, SUB_PART FROM information_schema.STATISTICS"
        " WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s ORDER BY INDEX_NAME, SEQ_IN_INDEX",
        place,
    ):
        indexes.add(str(name))
        if not int(common):
            whole = column is not None and (prefix is None or int(prefix) >= _ID)
            keys.setdefault(str(name), []).append((str(column or "an expression").lower(), whole))
    unique = {
        name: (tuple(column for column, _ in parts), all(whole for _, whole in parts)) for name, parts in keys.items()
    }
    ((comment, row_format),) = about
    return Table(
        columns=columns,
        keys=unique,
        indexes=frozenset(indexes),
        comment=str(comment or ""),
        row_format=str(row_format or ""),
        resources=exists(config, session, config.table + "_resources"),
    )


def exists(config: MysqlConfig, session: Session, table: str) -> bool:
    """Tell whether there is a table that the account may see."""
    sql = "SELECT COUNT(*) FROM information_schema.TABLES WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s"
    return bool(_rows(session, sql, (config.database, table))[0][0])


def _columns(session: Session, place: tuple[str, str]) -> Iterator[tuple[str, Column]]:
    for name, kind, definition, width, precision, charset, nullable, default, extra in _rows(
        session,
        "SELECT COLUMN_NAME, DATA_TYPE, COLUMN_TYPE, CHARACTER_MAXIMUM_LENGTH, DATETIME_PRECISION, CHARACTER_SET_NAME,"
        " IS_NULLABLE, COLUMN_DEFAULT, EXTRA FROM information_schema.COLUMNS"
        " WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s ORDER BY ORDINAL_POSITION",
        place,
    ):
        kind_text, more = str(kind).lower(), str(extra or "").lower()
        # TEXT types count bytes: a quarter of that is what any text of so many characters surely fits.
        limit = None if width is None or int(width) >= 1 << 24 else int(width)
        if limit is not None and kind_text.endswith("text"):
            limit //= 4
        generated = (
            ("generated" in more and "default_generated" not in more) or "virtual" in more or "persistent" in more
        )
        yield (
            str(name),
            Column(
                kind=kind_text,
                definition=f"{_text(definition)} auto_increment" if "auto_increment" in more else _text(definition),
                width=limit,
                precision=None if precision is None else int(precision),
                charset=str(charset or "").lower(),
                nullable=str(nullable).upper() == "YES",
                given=default is not None or "auto_increment" in more or "default_generated" in more or generated,
                generated=generated,
            ),
        )


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _rows(session: Session, sql: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    with session.cursor() as cursor:
        cursor.execute(sql, values)
        return list(cursor.fetchall())
