"""Looks at the server for an operator: one finding at a time, nothing is created or changed."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any

import msgspec
import pymysql

from shipper.errors import SinkError
from shipper.sink import Finding
from sinks.mysql import faults
from sinks.mysql.schema import changes, no_marker, prepare
from sinks.mysql.session import Session, connect, quoted, where
from sinks.mysql.table import look

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sinks.mysql.config import MysqlConfig

#: Seconds by which the clocks may differ, and bytes of packet below which a warning is given: a batch's statement.
_SKEW, _PACKET = 30.0, 4 << 20
#: Where the server gives an account that lacks the login itself; the rest is the network's fault.
_LOGIN = frozenset({"1044", "1045", "1049", "1130", "1251", "1698", "1820", "1862", "2059", "2061", "3118", "3955"})
#: What is needed in the table; creating needs more, which only a missing table asks for.
_NEEDED = ("SELECT", "INSERT", "UPDATE")
#: How LOAD DATA is allowed, for whoever may.
ALLOW = "To allow it: SET GLOBAL local_infile = ON, and local_infile=1 in the server's configuration"
_GRANT = re.compile(r"GRANT (.+?) ON (?:TABLE )?(\S+) TO ", re.IGNORECASE)


def examine(config: MysqlConfig) -> Iterator[Finding]:
    """Say what there is to say: reachable, tls, login, rights, limits, writable, clock, table. Does not raise."""
    try:
        session = connect(config)
    except SinkError as error:
        yield _not_connected(error)
        return
    try:
        ((version,),) = _rows(session, "SELECT VERSION()")
        yield Finding("reachable", "ok", f"{where(config)} answers, version {version}")
        yield from _looked(config, session)
    except (pymysql.MySQLError, OSError) as error:
        failure = faults.sorted_error(error, where(config))
        yield Finding("reachable", "fail", str(failure), "see the message")
    finally:
        session.release()


def _not_connected(error: SinkError) -> Finding:
    if error.code in _LOGIN:
        fix = "check user, password, database and that the account may come from this machine"
        return Finding("login", "fail", str(error), fix)
    if error.code == "2026":
        return Finding("tls", "fail", str(error), "check ssl_mode and ssl_ca, and that the server offers TLS")
    return Finding("reachable", "fail", str(error), "check host, port, the network, and that the server runs")


def _looked(config: MysqlConfig, session: Session) -> Iterator[Finding]:
    cipher = _rows(session, "SHOW STATUS LIKE 'Ssl_cipher'")
    if cipher and cipher[0][1]:
        yield Finding("tls", "ok", f"encrypted with {cipher[0][1]}")
    elif config.unix_socket:
        yield Finding("tls", "ok", "not needed: a socket of this machine")
    else:
        yield Finding("tls", "warn", "not encrypted", "set ssl_mode: required, unless nobody else can listen")
    ((user,),) = _rows(session, "SELECT CURRENT_USER()")
    yield Finding("login", "ok", f"as {user}")
    yield _rights(config, session)
    ((packet, infile, read_only, now),) = _rows(
        session, "SELECT @@max_allowed_packet, @@local_infile, @@read_only, UNIX_TIMESTAMP(NOW(6))"
    )
    small = int(packet) < _PACKET
    fix = "raise max_allowed_packet to 16M or more: longer records are refused" if small else ""
    yield Finding("limits", "warn" if small else "ok", f"max_allowed_packet is {int(packet) >> 10} KiB", fix)
    yield _load_data(config, allowed=bool(int(infile)))
    if int(read_only):
        yield Finding("writable", "fail", "read_only is ON", "name the primary as host, or turn read_only off there")
    else:
        yield Finding("writable", "ok", "read_only is OFF")
    skew = float(now) - time.time()
    far = abs(skew) > _SKEW
    fix = "run a time service on both machines" if far else ""
    yield Finding("clock", "warn" if far else "ok", f"{skew:+.1f} s from ours", fix)
    yield from _table(config, session)


def _rights(config: MysqlConfig, session: Session) -> Finding:
    """Judge by SHOW GRANTS. Rights that come by roles or patterns are not followed: then it is only a warning."""
    table = (config.database, config.table)
    held: set[str] = set()
    unknown = False
    for (grant,) in _rows(session, "SHOW GRANTS"):
        found = _GRANT.match(str(grant))
        if found is None or "%" in found[2]:
            unknown = True
            continue
        if not _covers(found[2], table):
            continue
        words = {word.partition("(")[0].strip().upper() for word in found[1].split(",")}
        held |= {"ALL"} if words & {"ALL", "ALL PRIVILEGES"} else words
    if "ALL" in held or held.issuperset(_NEEDED):
        return Finding("rights", "ok", f"{', '.join(_NEEDED)} on {config.database}.{config.table}")
    lacking = [right for right in _NEEDED if right not in held]
    text = f"SHOW GRANTS names no {', '.join(lacking)} on {config.database}.{config.table}"
    account = _rows(session, "SELECT CURRENT_USER()")[0][0]
    name, _, host = str(account).rpartition("@")
    fix = f"GRANT {', '.join(lacking)} ON {quoted(config.database)}.{quoted(config.table)} TO '{name}'@'{host}'"
    return Finding("rights", "fail" if "INSERT" in lacking and not unknown else "warn", text, fix)


def _covers(scope: str, table: tuple[str, str]) -> bool:
    database, _, name = scope.replace("`", "").replace("\\", "").rpartition(".")
    return database in {"*", table[0]} and name in {"*", table[1]}


def _load_data(config: MysqlConfig, *, allowed: bool) -> Finding:
    if not config.loads:
        return Finding("load_data", "ok", "off: INSERT is used")
    if allowed:
        return Finding("load_data", "ok", "LOAD DATA LOCAL is used")
    verdict = "ok" if config.load_data == "auto" else "warn"
    return Finding("load_data", verdict, f"local_infile is OFF, so INSERT is used, at half the rate. {ALLOW}", ALLOW)


def _table(config: MysqlConfig, session: Session) -> Iterator[Finding]:
    table = look(config, session)
    wanted = changes(config, session, table)
    try:
        prepare(msgspec.structs.replace(config, create_table=False), session)
    except SinkError as error:
        if error.code == "SCHEMA" or not wanted or not all(change.ours for change in wanted):
            yield Finding("table", "fail", str(error), "do what the message says")
            return
        text = ", ".join(change.text.partition("(")[0].strip() for change in wanted)
        yield Finding("table", "ok", f"left to the first start, or to shipper prepare: {text}")
    if table is None:
        return
    notes = list(table.notes(config))
    if not table.marker and not any(change.ours for change in wanted):
        notes.append(no_marker(config, table))
    if config.retention and not table.ours:
        notes.append("retention deletes rows in it that others wrote, too")
    if notes:
        fix = "nothing, if you can live with it; or set table: to a name that is free, and shipper makes its own"
        yield Finding("table", "warn", f"{config.table}: {'; '.join(notes)}", fix)
    elif not wanted:
        yield Finding("table", "ok", f"{config.table} has the columns and the key that it needs")


def _rows(session: Session, sql: str) -> list[tuple[Any, ...]]:
    with session.cursor() as cursor:
        cursor.execute(sql)
        return list(cursor.fetchall())
