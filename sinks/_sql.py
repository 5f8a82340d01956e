r"""How records become rows of the table ``activity_logs``: shared by the sinks sqlite and mysql.

::

    id level message details user_id action ip_address user_agent created_at service container stream host source shipper
                             \__ columns: {column: attribute} of the config __/

* ``created_at`` is UTC text ``YYYY-MM-DD HH:MM:SS.ffffff``, cut (never rounded) below the microsecond.
* An attribute that has a column goes there, an integer as text. A value that does not fit its column (too long,
  not text) stays whole in ``details`` under its own name, and the column is NULL.
* All other attributes are one JSON object in ``details``, NULL when there is none. If the attribute ``details`` is
  itself an object, its members stand there directly, the other attributes beside them, as an application that
  writes to the table itself would put them. If names collide, or are too many for the marker, ``details`` stays
  one name among the others.
* ``shipper`` is the marker, NULL when the other columns alone give the record back:
  ``nanoseconds,resource,mark,mark...,+name,name...``: what is below the microsecond, the key of the full resource in
  ``<table>_resources`` (empty when the columns say all), and marks: a column's name if its value was an integer,
  ``#n`` the severity number, ``!name`` a column that is only filled because it may not be NULL, ``!`` a message that
  its column does not hold (``details`` is then an object of ``attributes`` and the whole ``message``), and last ``+``:
  the column's members came from the attribute ``details``, but for the names that follow. A marker longer than its
  column is ``*``, and ``details`` is then an object of two members: ``attributes``, what would stand there, and
  ``shipper``, the marker. A table may lack the column: nanoseconds, integer types and further attributes of the
  resource are then lost, and ``details`` is never opened.
* What JSON or the backends cannot hold: nesting beyond 20 levels becomes text that begins with ``[too deep] ``
  (MariaDB refuses 32 levels, MySQL 101), NaN and infinities become null, lone surrogates U+FFFD.

`sinks._sql_read` reads them back.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64encode
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise, repeat, zip_longest
from operator import itemgetter, lt
from typing import TYPE_CHECKING, Any

import msgspec
from xxhash import xxh3_128_digest

from shipper.native import compiled
from shipper.record import LEVELS, SEVERITIES, make_id
from shipper.render import Kind, render, span
from sinks._plain import MAX_DEPTH, cleaned, plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shipper.record import Batch, Resource

#: Columns before and after the ones that the config maps.
FIRST = ("id", "level", "message", "details")
LAST = ("created_at", "service", "container", "stream", "host", "source")
#: The default mapping, column to attribute.
COLUMNS = {"user_id": "user_id", "action": "action", "ip_address": "ip_address", "user_agent": "user_agent"}
#: Resource attributes that have a column, in the order of the columns.
RESOURCE_COLUMNS = ("service.name", "container.name", "log.iostream", "host.name")
#: What the end of a value that was cut says.
CUT = "…"

#: The column of the marker, and what it holds when the marker itself stands in ``details``.
MARKER, WRAPPED = "shipper", "*"
#: Other words for levels, as other writers of the table have them.
LEVEL_ALIASES = {"warning": "warn", "critical": "fatal", "err": "error", "crit": "fatal", "verbose": "debug"}
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_CANONICAL = frozenset(SEVERITIES.values())
_DIGITS = bytes(48 if 48 <= byte <= 57 else 0 for byte in range(256))
_NO_OPENERS = bytes(byte for byte in range(256) if byte not in b"[{\n")
_MANY_OPENERS = re.compile(rb"[\[{]{%d}" % (MAX_DEPTH + 1))
_encoder = msgspec.json.Encoder(enc_hook=str)
_details = itemgetter("details")


def check_columns(columns: dict[str, str]) -> None:
    """Raise ValueError unless every column's name is usable and every attribute is named once."""
    for column, attribute in columns.items():
        if not _NAME.fullmatch(column):
            raise ValueError(f"columns: {column!r} is not a column name; use letters, digits and _")
        if column.lower() in {*FIRST, *LAST, MARKER}:
            raise ValueError(f"columns: {column} is filled by shipper itself; choose another column")
        if attribute in {"", "details"}:
            raise ValueError(f"columns: {column}: the attribute {attribute!r} cannot have a column of its own")
    if len(set(columns.values())) < len(columns) or len({column.lower() for column in columns}) < len(columns):
        raise ValueError("columns: an attribute or a column is named twice; each may have one partner")


def check_table(table: str) -> None:
    """Raise ValueError unless the table's name is plain. 54 characters leave room for the resources table."""
    if not _NAME.fullmatch(table) or len(table) > 54:
        raise ValueError(f"table: {table!r} is not a table name; use letters, digits and _, at most 54")


class ResourceColumns(msgspec.Struct, frozen=True, eq=False):
    """What a resource adds to each of its rows: five columns, and its key and JSON when those do not say all.

    Equal resources share one object, and rows are grouped by its identity: hashing its text per row cost as much as
    encoding it.
    """

    columns: tuple[str | None, str | None, str | None, str | None, str]
    key: str
    json: str


class Rows(msgspec.Struct):
    """Records as columns of the table.

    ``details`` are JSON texts or ``None``, ``markers`` the texts of the column ``shipper``, ``None`` for a table
    without it.
    """

    ids: list[str]
    levels: list[str]
    messages: list[str]
    details: list[str | None]
    mapped: list[list[str | None]]
    times: list[int]
    resource_columns: list[ResourceColumns]
    markers: list[str | None] | None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def texts(self) -> list[list[Any]]:
        """The columns of texts that stand before ``created_at`` in `Mapping.sent`."""
        return [self.ids, self.levels, self.messages, self.details, *self.mapped]

    @property
    def created(self) -> list[str]:
        """The column ``created_at``."""
        return render([(Kind.CREATED, self.times), b"\n"], 0, len(self.times)).decode().split("\n")[:-1]

    def clean(self) -> Rows:
        """Make rows without lone surrogates, which neither UTF-8 nor the backends can hold."""
        return msgspec.structs.replace(
            self,
            messages=[cleaned(text) for text in self.messages],
            mapped=[[None if text is None else cleaned(text) for text in values] for values in self.mapped],
        )


class _Shape(msgspec.Struct, frozen=True):
    """What the names of a record's attributes say: ``columns`` that have one, names left for ``details``.

    ``outside`` are the names left beside an attribute ``details``, ``None`` without one. ``mark`` tells that they
    stand beside its members, ``None`` when a marker cannot say so.
    """

    columns: frozenset[str]
    left: tuple[str, ...]
    outside: tuple[str, ...] | None
    mark: str | None


class Mapping:
    """Turns batches into rows for one table.

    ``widths`` gives the characters each column holds; a column that is not named holds any text, ``shipper`` 255.
    With ``wide_integers`` false, whole numbers beyond 64 bits, which MySQL's JSON would round, become text. With
    ``marker`` false the table has no column ``shipper``.
    """

    def __init__(
        self,
        columns: dict[str, str],
        *,
        widths: dict[str, int] | None = None,
        wide_integers: bool = True,
        marker: bool = True,
    ) -> None:
        self.columns = columns
        self.marker = marker
        self._widths = widths or {}
        self._wide_integers = wide_integers
        self._mark_width = self._widths.get(MARKER, 255)
        # What names may take, once nanoseconds, key, severity and every column's name are in the marker.
        self._room = self._mark_width - 20 - sum(len(column) + 1 for column in columns)
        self._marks = tuple(f",{column}" if marker else "" for column in columns)
        self._most = tuple(self._widths.get(column, -1) for column in columns)
        #: What stands for a level in its column; and the severities that need no mark.
        self._levels: dict[str, str] | None = None
        self._unmarked = _CANONICAL if marker else frozenset(range(len(LEVELS)))
        self._by_resource: dict[Resource, ResourceColumns] = {}
        self._by_content: dict[tuple[Any, ...], ResourceColumns] = {}
        self._marker_texts_by_key: dict[tuple[str, str], list[str | None]] = {}
        self._shapes: dict[tuple[str, ...], _Shape] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The table's columns in order."""
        return (*FIRST, *self.columns, *LAST, MARKER) if self.marker else (*FIRST, *self.columns, *LAST)

    @property
    def sent(self) -> tuple[str, ...]:
        """The same columns in the order in which values are sent: what a resource adds to its rows comes last."""
        return (*FIRST, *self.columns, "created_at", *((MARKER,) if self.marker else ()), *LAST[1:])

    @staticmethod
    def order(batch: Batch) -> Sequence[int]:
        """Give the indexes of the batch's records in the order of (time, id), each record once.

        That is the order of the key but for records of one microsecond, and the same for every writer.
        Raises ValueError for a time that no column holds.
        """
        times = batch.times
        if not times:
            return range(0)
        least, most, ascends = span(times)
        for time in (least, most):
            _second(time // 1_000_000_000)
        if ascends:
            return range(len(times))
        order, ties = _time_order(times)
        return _without_ties(order, ties, batch) if ties else order

    def rows(self, batch: Batch, order: Sequence[int]) -> Rows:
        """Encode the records of a batch that stand at ``order``, of those that `order` gives."""
        batch = batch.parsed_at(order)
        count = len(batch)
        resource_columns = self.resource_columns(batch.resources)
        severities = batch.severities if batch.severities is not None else [SEVERITIES["info"]] * count
        levels = [LEVELS[severity] for severity in severities]
        messages = batch.messages if batch.messages is not None else batch.raws
        marks: str | list[str]
        if batch.attributes:
            mapped, details, marks = self._split_attributes(batch.attributes)
        else:
            mapped, details, marks = [[None] * count for _ in self.columns], [None] * count, ""
        if not set(severities) <= self._unmarked:
            marks = self._severities(severities, marks)
        messages, marks = self._fit(messages, mapped, details, marks)
        markers = self._markers(batch.times, resource_columns, marks) if self.marker else None
        if markers is not None and self._room < 0:
            self._wrap(details, markers)
        return Rows(
            ids=batch.ids,
            levels=levels if self._levels is None else [self._levels[level] for level in levels],
            messages=messages,
            details=details,
            mapped=mapped,
            times=batch.times,
            resource_columns=resource_columns,
            markers=markers,
        )

    def _severities(self, severities: list[int], marks: str | list[str]) -> list[str]:
        """Put the severities that a row's level does not tell before its marks."""
        each = [marks] * len(severities) if isinstance(marks, str) else marks
        return [
            mark if severity in self._unmarked else f",#{severity}{mark}"
            for mark, severity in zip(each, severities, strict=True)
        ]

    def _fit(
        self,
        messages: list[str],
        mapped: list[list[str | None]],  # noqa: ARG002
        details: list[str | None],  # noqa: ARG002
        marks: str | list[str],
    ) -> tuple[list[str], str | list[str]]:
        """Make the columns what a table of another's making holds, in place; give messages and marks: `_sql_fit`."""
        return messages, marks

    def resource_columns(self, resources: list[Resource]) -> list[ResourceColumns]:
        """Give what each record's resource adds to its row."""
        known = self._by_resource
        try:
            return [known[resource] for resource in resources]
        except KeyError:
            if len(known) > 10_000:  # bounds memory where containers come and go
                known.clear()
                self._by_content.clear()
            for resource in resources:
                if resource not in known:
                    known[resource] = self._shared_columns(resource)
            return [known[resource] for resource in resources]

    def _shared_columns(self, resource: Resource) -> ResourceColumns:
        content = (resource.source, *sorted(resource.attributes.items()))
        if (shared := self._by_content.get(content)) is None:
            shared = self._by_content[content] = self._make_shared_columns(resource)
        return shared

    def _make_shared_columns(self, resource: Resource) -> ResourceColumns:
        attributes = {cleaned(name): cleaned(value) for name, value in resource.attributes.items()}
        source = cleaned(resource.source)
        values = [attributes.get(name) for name in RESOURCE_COLUMNS]
        fitting = [self._truncated(column, value) for column, value in zip(LAST[1:], [*values, source], strict=True)]
        complete = attributes.keys() <= set(RESOURCE_COLUMNS) and fitting == [*values, source]
        text = "" if complete else _encoder.encode({"attributes": attributes, "source": source}).decode()
        key = "" if complete else urlsafe_b64encode(xxh3_128_digest(text.encode())[:9]).decode()
        service, container, stream, host, name = fitting
        return ResourceColumns((service, container, stream, host, name or ""), key, text)

    def _truncated(self, column: str, value: str | None) -> str | None:
        width = self._widths.get(column)
        return value if value is None or width is None or len(value) <= width else value[: width - 1] + CUT

    def _markers(self, times: list[int], shared: list[ResourceColumns], marks: str | list[str]) -> list[str | None]:
        """Give ``nanoseconds,key`` and the marks of each row, ``None`` where there is nothing to say."""
        if not times:
            return []
        each = [marks] * len(times) if isinstance(marks, str) else marks
        key = shared[0].key
        if shared.count(shared[0]) == len(shared):
            different = set(each)
            if len(different) == 1:
                texts_of_nanos = self._marker_texts(key, each[0])
                return [texts_of_nanos[time % 1000] for time in times]
            if len(different) < 20:
                by_mark = {mark: self._marker_texts(key, mark) for mark in different}
                return [by_mark[mark][time % 1000] for time, mark in zip(times, each, strict=True)]
        texts = [f"{time % 1000},{one.key}{mark}" for time, one, mark in zip(times, shared, each, strict=True)]
        return [None if text == "0," else text for text in texts]

    def _marker_texts(self, key: str, mark: str) -> list[str | None]:
        """Give the markers of every number of nanoseconds: making a text per row costs more than finding it."""
        texts = self._marker_texts_by_key.get((key, mark))
        if texts is None:
            if len(self._marker_texts_by_key) > 100:
                self._marker_texts_by_key.clear()
            texts = [f"{nanos},{key}{mark}" for nanos in range(1000)]
            texts[0] = None if texts[0] == "0," else texts[0]
            self._marker_texts_by_key[key, mark] = texts
        return texts

    def _wrap(self, details: list[str | None], markers: list[str | None]) -> None:
        """Move markers that are too long for their column into ``details``, in place."""
        for index, marker in enumerate(markers):
            if marker is not None and len(marker) > self._mark_width:
                text = _encoder.encode(marker).decode()
                details[index] = f'{{"attributes":{details[index] or "{}"},"{MARKER}":{text}}}'
                markers[index] = WRAPPED

    def _shape(self, names: tuple[str, ...]) -> _Shape:
        if (known := self._shapes.get(names)) is not None:
            return known
        if len(self._shapes) > 1000:
            self._shapes.clear()
        own = set(self.columns.values())
        left = tuple(name for name in names if name not in own)
        outside = tuple(name for name in left if name != "details") if "details" in left else None
        shape = _Shape(frozenset(own.intersection(names)), left, outside, self._mark_outside(outside or ()))
        if sum(map(len, names)) <= 4_096:  # a record of a megabyte of names is not remembered
            self._shapes[names] = shape
        return shape

    def _mark_outside(self, outside: Sequence[str]) -> str | None:
        """Give the mark for names beside the members of the attribute ``details``, ``None`` if there is none."""
        text = ",".join(outside)
        if len(text) > self._room - 2 or not self.marker:
            return None
        plain = all(name and name.isprintable() and "," not in name and "\ufffd" not in name for name in outside)
        return f",+{text}" if plain else None

    def _split_attributes(
        self, attributes: list[dict[str, Any]]
    ) -> tuple[list[list[str | None]], list[str | None], str | list[str]]:
        """Give the mapped columns, ``details``, and the marks (one text if all rows have the same)."""
        found = None
        if compiled is not None:
            names = tuple(self.columns.values())
            room = self._room if self.marker else 0
            found = compiled.divide(attributes, names, self._marks, self._most, room, MAX_DEPTH, _encoder.encode)
        if found is None:
            return self._split_in_python(attributes)
        (*mapped, details, marks), odd = found
        if odd:
            columns, others, odd_marks = self._split_in_python([attributes[index] for index in odd])
            each = [odd_marks] * len(odd) if isinstance(odd_marks, str) else odd_marks
            pairs: list[tuple[list[Any], Sequence[Any]]] = [*zip(mapped, columns, strict=True)]
            for column, values in [*pairs, (details, others), (marks, each)]:
                for index, value in zip(odd, values, strict=True):
                    column[index] = value
        return mapped, details, marks

    def _split_in_python(
        self, attributes: list[dict[str, Any]]
    ) -> tuple[list[list[str | None]], list[str | None], str | list[str]]:
        left, mapped, marks = self._attributes(attributes)
        return mapped, [None] * len(attributes) if left is None else self._json(left), marks

    def _attributes(
        self, attributes: list[dict[str, Any]]
    ) -> tuple[Sequence[dict[str, Any] | None] | None, list[list[str | None]], str | list[str]]:
        """Give what is left for ``details``, the mapped columns, and the marks (one text if all rows have the same).

        Rows with the same names are done at once, column by column, which is what makes a row cheap.
        """
        count = len(attributes)
        names = list(map(tuple, attributes))
        if names.count(names[0]) == count:
            rest, columns, all_marks = self._group(self._shape(names[0]), attributes)
            return rest, [[None] * count if values is None else values for values in columns], all_marks
        places: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
        for index, name in enumerate(names):
            places[name].append(index)
        left: list[dict[str, Any] | None] = [None] * count
        mapped: list[list[str | None]] = [[None] * count for _ in self.columns]
        marks = [""] * count
        for name, indexes in places.items():
            rest, columns, group_marks = self._group(self._shape(name), [attributes[index] for index in indexes])
            for column, values in zip(mapped, columns, strict=True):
                if values is not None:
                    for index, value in zip(indexes, values, strict=True):
                        column[index] = value
            if rest is not None:
                for index, one in zip(indexes, rest, strict=True):
                    left[index] = one
            if group_marks:
                for index, mark in zip(indexes, repeat(group_marks) if isinstance(group_marks, str) else group_marks):  # noqa: B905
                    marks[index] = mark
        return (None if left.count(None) == count else left), [*mapped], marks

    def _group(
        self, shape: _Shape, attributes: list[dict[str, Any]]
    ) -> tuple[Sequence[dict[str, Any] | None] | None, list[list[str | None] | None], str | list[str]]:
        """Do the work of `_attributes` for rows of the same names; ``None`` for columns that none of them has."""
        kept: dict[int, list[str]] = {}  # attributes whose value does not fit their column, by row
        mapped: list[list[str | None] | None] = []
        integers: list[tuple[str, list[bool] | None]] = []
        for column, attribute in self.columns.items():
            if attribute in shape.columns:
                mapped.append(self._column(column, attributes, kept, integers))
            else:
                mapped.append(None)
        left, marks = self._remainder(shape, attributes, kept)
        for column, flags in reversed(integers):
            if flags is None and isinstance(marks, str):
                marks = f",{column}{marks}"
            else:
                each = [marks] * len(attributes) if isinstance(marks, str) else marks
                flagged = repeat(True) if flags is None else flags
                marks = [f",{column}{mark}" if flag else mark for mark, flag in zip(each, flagged)]  # noqa: B905
        return left, mapped, marks

    def _column(
        self,
        column: str,
        attributes: list[dict[str, Any]],
        kept: dict[int, list[str]],
        integers: list[tuple[str, list[bool] | None]],
    ) -> list[str | None]:
        """Make a column; a value that does not fit is named in ``kept``, and NULL here.

        A null of the application's must come back as one, so it does not fit either.
        """
        attribute = self.columns[column]
        values: list[Any] = list(map(itemgetter(attribute), attributes))
        width = self._widths.get(column)
        kinds = set(map(type, values))
        flags: list[bool] | None = None
        if kinds == {int}:
            values = list(map(str, values))
        elif int in kinds:
            flags = [type(value) is int for value in values]
            values = [str(value) if flag else value for value, flag in zip(values, flags, strict=True)]
        fitting = kinds <= {str, int}
        if not fitting or (width is not None and max(map(len, values), default=0) > width):
            for index, value in enumerate(values):
                if type(value) is not str or (width is not None and len(value) > width):
                    values[index] = None
                    kept.setdefault(index, []).append(attribute)
                    if int in kinds:
                        flags = [True] * len(values) if flags is None else flags
                        flags[index] = False
        if int in kinds and self.marker:
            integers.append((column, flags))
        return values

    def _remainder(
        self, shape: _Shape, attributes: list[dict[str, Any]], kept: dict[int, list[str]]
    ) -> tuple[Sequence[dict[str, Any] | None] | None, str | list[str]]:
        """Give what has no column, and the marks of ``details`` (one text if all rows have the same)."""
        if kept:
            return self._remainder_of_rows(shape, attributes, kept)
        if not shape.left:
            return None, ""
        if shape.outside is not None and shape.mark is not None:
            inner = list(map(_details, attributes))
            kinds = set(map(type, inner))
            if kinds == {dict} and not shape.outside:
                return inner, shape.mark
            if dict in kinds:
                return self._remainder_of_rows(shape, attributes, kept)
        if not shape.columns:
            return attributes, ""
        if len(shape.columns) > len(shape.left):
            return [{name: each[name] for name in shape.left} for each in attributes], ""
        rests = [each.copy() for each in attributes]
        for name in shape.columns:
            for rest in rests:
                del rest[name]
        return rests, ""

    def _remainder_of_rows(
        self, shape: _Shape, attributes: list[dict[str, Any]], kept: dict[int, list[str]]
    ) -> tuple[Sequence[dict[str, Any] | None], list[str]]:
        left: list[dict[str, Any] | None] = []
        marks: list[str] = []
        for index, each in enumerate(attributes):
            names, outside, mark = shape.left, shape.outside, shape.mark
            if index in kept:
                names = (*names, *kept[index])
                if outside is not None:
                    outside = (*outside, *kept[index])
                    mark = self._mark_outside(outside)
            inner = each["details"] if outside is not None else None
            if mark is not None and type(inner) is dict and inner.keys().isdisjoint(outside or ()):
                left.append({**inner, **{name: each[name] for name in outside or ()}})
                marks.append(mark)
                continue
            left.append({name: each[name] for name in names} if names else None)
            marks.append("")
        return left, marks

    def _json(self, values: Sequence[dict[str, Any] | None]) -> list[str | None]:
        try:
            block = _encoder.encode_lines(values)
            lines: list[str | None] = list(block.decode().split("\n"))
            lines.pop()
        except (UnicodeError, ValueError, TypeError, OverflowError, RecursionError):
            return [None if value is None else _encoder.encode(plain(value)).decode() for value in values]
        wide = not self._wide_integers and b"0" * 19 in block.translate(_DIGITS)
        # Whatever opens at most that often cannot be deeper: one pass over the bytes clears nearly every batch.
        openers = block.translate(None, _NO_OPENERS)
        if wide or _MANY_OPENERS.search(openers):
            for index, opened in enumerate(openers.split(b"\n")[:-1]):
                if wide or len(opened) > MAX_DEPTH:
                    lines[index] = _encoder.encode(plain(values[index], wide=not wide)).decode()
        if None in values:
            return [None if value is None else line for value, line in zip(values, lines, strict=True)]
        return lines


def _time_order(times: list[int]) -> tuple[list[int], list[int]]:
    """Give the indexes of times in their order, and the places there whose time is that of the next."""
    order = sorted(range(len(times)), key=times.__getitem__)
    ranked = list(map(times.__getitem__, order))
    if all(map(lt, ranked, islice(ranked, 1, None))):
        return order, []
    return order, [place for place, (one, two) in enumerate(pairwise(ranked)) if one == two]


def _without_ties(order: list[int], ties: list[int], batch: Batch) -> list[int]:
    """Put records of the same time in the order of their ids, and drop an id's second record.

    Only those ids are made: nothing can be sent before the order is known, and all others are made while it is.
    """
    tied = {order[place + step] for place in ties for step in (0, 1)}
    ids = {index: make_id(batch.stamps[index], batch.hashes[index]) for index in tied}
    start = ties[0]
    for place, following in zip_longest(ties, islice(ties, 1, None)):
        if following != place + 1:  # the end of a run of equal times
            order[start : place + 2] = sorted(order[start : place + 2], key=ids.__getitem__)
            start = following
    second = {place + 1 for place in ties if ids[order[place]] == ids[order[place + 1]]}
    return [index for place, index in enumerate(order) if place not in second] if second else order


def _second(seconds: int) -> str:
    """Render a second since 1970 UTC with its point. Raises ValueError beyond the years 1000 to 9999."""
    try:
        text = (EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%d %H:%M:%S.")
    except OverflowError:
        text = ""
    if len(text) != 20 or text < "1000":
        raise ValueError(f"the time {seconds} s since 1970 is outside of the years 1000 to 9999 that a column holds")
    return text


def created_text(time_ns: int) -> str:
    """Render nanoseconds since 1970 UTC as the text of ``created_at``; years beyond a column's are its bounds."""
    seconds, rest = divmod(time_ns, 1_000_000_000)
    seconds = min(max(seconds, -30_610_224_000), 253_402_300_799)
    return f"{_second(seconds)}{rest // 1000:06d}"
