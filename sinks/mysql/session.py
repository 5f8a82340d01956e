"""Connections: options, session setup, and LOAD DATA LOCAL that serves only our own bytes."""

from __future__ import annotations

import math
import re
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import pymysql
from pymysql.connections import Connection, MySQLResult
from pymysql.constants import CLIENT, CR
from pymysql.protocol import LoadLocalPacketWrapper

from shipper.errors import ParkedError
from shipper.units import parse_duration
from sinks.mysql import faults

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sinks.mysql.config import MysqlConfig

if TYPE_CHECKING:
    _Connection = Connection[Any]
else:
    _Connection = Connection

#: Every fault of a value is an error, never a changed value, whatever the server's own default is.
SQL_MODE = "STRICT_ALL_TABLES,STRICT_TRANS_TABLES,NO_ZERO_IN_DATE,NO_ZERO_DATE,NO_ENGINE_SUBSTITUTION"
_PIECE = 1 << 20
#: ER_SPECIFIC_ACCESS_DENIED_ERROR
_NEEDS_PRIVILEGE = 1227
_INFO = re.compile(r"Records: (\d+) +Deleted: (\d+) +Skipped: (\d+) +Warnings: (\d+)")
_MET = re.compile(r"Duplicates: (\d+)")


class InsertCount(NamedTuple):
    """What the server says of an INSERT: rows changed, and rows that met others of the same key."""

    stored: int
    met: int


class LoadCount(NamedTuple):
    """What the server says of a LOAD DATA: rows read, stored and skipped, and its warnings."""

    records: int
    stored: int
    skipped: int
    warnings: int


class Session(_Connection):
    """A connection on which the server may ask for the bytes of `load`, once, and for nothing else.

    With LOCAL the server, not the client, names the file to send, and a hostile one names any
    (https://dev.mysql.com/doc/refman/8.4/en/load-data-local-security.html). So no file is ever opened: a request is
    answered only while `load` runs and only if it names the token of that call. PyMySQL's own answer, which opens
    files, is switched off in every connection: see `connect`.
    """

    def __init__(self, **options: Any) -> None:
        self._token = b""
        self._data: Iterable[bytes] = ()
        self._serial = 0
        super().__init__(**options)

    def _create_ssl_ctx(self, options: dict[str, Any]) -> ssl.SSLContext:
        """Make a context. Where nothing is checked, the certificates of this machine are not read: 25 ms a connection."""
        if options.get("ca") or options.get("cert"):
            return cast("ssl.SSLContext", cast("Any", super())._create_ssl_ctx(options))  # noqa: SLF001
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context

    def load(self, statement: str, data: Iterable[bytes]) -> LoadCount:
        """Run a LOAD DATA statement, ``{file}`` standing for the file's name, with the pieces of ``data`` as the file.

        A piece is asked for when the one before is on its way: the server works on it meanwhile. If making one
        fails, the statement ends there and the error is raised: roll back.
        """
        self._serial += 1
        token = f"shipper:{id(self):x}:{self._serial}"
        self._token, self._data = token.encode(), data
        try:
            stored = self.query(statement.replace("{file}", token))
            found = _INFO.search(_info(self._result))
        finally:
            self._token, self._data = b"", ()
        if found is None:
            raise pymysql.err.OperationalError(CR.CR_COMMANDS_OUT_OF_SYNC, "LOAD DATA gave no count of its rows")
        return LoadCount(int(found[1]), stored, int(found[3]), int(found[4]))

    def insert(self, statement: bytes) -> InsertCount:
        """Run an INSERT. ``met`` counts only rows that changed others; those left as they were are not stored."""
        stored = self.query(statement)
        found = _MET.search(_info(self._result))  # nothing is told of a single row
        return InsertCount(stored, int(found[1]) if found else 0)

    def duplicates(self) -> list[str] | None:
        """Give what the last statement's warnings say of duplicate keys; ``None`` if there are other warnings."""
        with self.cursor() as cursor:
            cursor.execute("SHOW WARNINGS")
            rows = cursor.fetchall()
        if any(number != faults.DUPLICATE for _, number, _ in rows):
            return None
        return [str(text) for _, _, text in rows]

    def list_all_warnings(self) -> None:
        """Make SHOW WARNINGS give more than the server's default (1,024 in MySQL, 64 in MariaDB), if we may.

        MySQL lets only accounts with SESSION_VARIABLES_ADMIN change it; the others see the default number.
        """
        try:
            self.query("SET max_error_count = 65535")
        except pymysql.err.OperationalError as error:
            if error.args[0] != _NEEDS_PRIVILEGE:
                raise

    def _read_query_result(self, unbuffered: bool = False) -> int:
        self._result = None
        result = _GuardedResult(self)
        if unbuffered:
            result.init_unbuffered_query()
        else:
            result.read()
        self._result = result
        if result.server_status is not None:
            self.server_status = result.server_status
        return int(result.affected_rows or 0)

    def release(self) -> None:
        """Close, politely when that still works; never raises."""
        if not self.open:
            return
        try:
            self.close()
        except (pymysql.MySQLError, OSError):
            cast("Any", self)._force_close()  # noqa: SLF001 - the only way to let go of a broken socket

    def send_file(self, name: bytes) -> None:
        """Answer the server's request for a file. Raises OperationalError 1017 for any but the one announced."""
        if not self._token or name != self._token:
            shown = name[:200].decode("utf-8", "replace")
            raise pymysql.err.OperationalError(1017, f"the server asked for the file {shown!r}; refused")
        self._token = b""
        for data in self._data:
            for start in range(0, len(data), _PIECE):
                self.write_packet(data[start : start + _PIECE])


class _GuardedResult(MySQLResult):
    """PyMySQL's result, with the one method replaced that would open a file."""

    def _read_load_local_packet(self, first_packet: Any) -> None:
        session = cast("Session", self.connection)
        request = LoadLocalPacketWrapper(first_packet)
        try:
            session.send_file(bytes(request.filename))
        finally:
            session.write_packet(b"")  # the end of the file, or its refusal: the connection stays in step
            packet = cast("Any", session)._read_packet()  # noqa: SLF001 - PyMySQL offers no other way
        if not packet.is_ok_packet():
            raise pymysql.err.OperationalError(CR.CR_COMMANDS_OUT_OF_SYNC, "Commands Out of Sync")
        cast("Any", self)._read_ok_packet(packet)  # noqa: SLF001 - the method of its base that the stubs leave out


def _info(result: Any) -> str:
    """The text of the OK packet; PyMySQL leaves its length byte in front."""
    message = getattr(result, "message", b"") or b""
    return message.decode("ascii", "replace") if isinstance(message, bytes) else str(message)


def where(config: MysqlConfig) -> str:
    """Name the server in errors."""
    return f"mysql {config.unix_socket or f'{config.host}:{config.port}'}"


def connect(config: MysqlConfig, *, maintenance: bool = False, load_data: bool = False) -> Session:
    """Connect and set the session up. Raises RetryableError or ParkedError."""
    options: dict[str, Any] = {
        "user": config.user,
        "password": _password(config.password, config.password_file, "password_file"),
        "database": config.database,
        "charset": "utf8mb4",
        "autocommit": False,
        # The server is told that files may be asked for; PyMySQL itself is not, so that its own code, which opens any
        # file, refuses should a version of it no longer come by `_GuardedResult`.
        "client_flag": CLIENT.LOCAL_FILES if load_data else 0,
        "local_infile": False,
        "connect_timeout": math.ceil(parse_duration(config.connect_timeout)),
        "read_timeout": parse_duration(config.read_timeout),
        "write_timeout": parse_duration(config.write_timeout),
        "program_name": "shipper",
        "init_command": (
            f"SET time_zone = '+00:00', sql_mode = '{SQL_MODE}', "
            f"innodb_lock_wait_timeout = {max(1, round(parse_duration(config.lock_wait_timeout)))}"
        ),
        **_tls(config),
    }
    if maintenance and config.maintenance_user:
        options["user"] = config.maintenance_user
        options["password"] = _password(
            config.maintenance_password, config.maintenance_password_file, "maintenance_password_file"
        )
    if config.unix_socket:
        options["unix_socket"] = config.unix_socket
    else:
        options |= {"host": config.host, "port": config.port}
    try:
        session = Session(**options)
        if load_data:
            session.list_all_warnings()
    except (pymysql.MySQLError, OSError, RuntimeError) as error:
        raise faults.sorted_error(error, where(config)) from error
    return session


def _password(text: str, file: str, key: str) -> bytes:
    """Bytes, because PyMySQL would encode text as latin-1. The file is read at each connect: it may change."""
    if not file:
        return text.encode()
    try:
        return Path(file).read_bytes().removesuffix(b"\n").removesuffix(b"\r")
    except OSError as error:
        raise ParkedError(f"mysql: cannot read {key} {file} ({error.strerror}); let this user read it") from error


def _tls(config: MysqlConfig) -> dict[str, Any]:
    mode = config.ssl_mode
    if mode == "auto":
        mode = "verify_identity" if config.ssl_ca else "required" if config.ssl_cert else "preferred"
    if mode == "disabled" or (mode == "preferred" and config.unix_socket):
        return {"ssl_disabled": True}
    if mode == "preferred":
        return {}
    if mode == "required" and not (config.ssl_ca or config.ssl_cert):
        return {"ssl": {"check_hostname": False, "verify_mode": "none"}}
    return {
        "ssl_ca": config.ssl_ca or None,
        "ssl_cert": config.ssl_cert or None,
        "ssl_key": config.ssl_key or None,
        "ssl_verify_cert": mode in {"verify_ca", "verify_identity"},
        "ssl_verify_identity": mode == "verify_identity",
    }


def quoted(name: str) -> str:
    """Quote an identifier."""
    return "`" + name.replace("`", "``") + "`"
