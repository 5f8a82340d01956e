"""What an error of the server means for the delivery, by its number: section 1.6 of the sink's page.

PyMySQL's exception classes say little (a missing table is a ProgrammingError, a failed CHECK an OperationalError);
the number in ``args[0]`` decides, and for numbers not listed the SQLSTATE class does.
"""

from __future__ import annotations

import re
import ssl

import pymysql

from shipper.errors import ParkedError, PermanentError, RetryableError, SinkError

DUPLICATE = 1062
#: The connection is gone or may be: the outcome of the last statement is not known. 0 is InterfaceError(0, "").
LOST = frozenset({0, 1053, 1152, 1158, 1159, 1160, 1161, 1184, 1927, 2002, 2003, 2006, 2013, 2014, 2027, 2055, 4031})
BUSY = frozenset({1040, 1041, 1129, 1135, 1203, 1226})
LOCK = frozenset({1205, 1213})
#: The server is no longer the writer (failover), or was made read-only. The name may point elsewhere next time.
READ_ONLY = frozenset({1047, 1290, 1792, 1836, 3032, 3100, 3101})
INTERRUPTED = frozenset({1317, 1969, 3024})
FULL = frozenset({1021, 1114})
TOO_BIG = frozenset({1153, 2020})
OPERATOR = frozenset(
    {1044, 1045, 1046, 1049, 1054, 1130, 1136, 1142, 1143, 1146, 1227, 1251, 1347, 1348, 1356, 1364, 1370, 1410, 1449}
    | {1471, 1698, 1709, 1820, 1862, 2026, 2049, 2054, 2059, 2061, 3118, 3159, 3955, 4151}
)
PARTITION = frozenset({1412, 1526, 1615})
#: What a table has against a row, beside the SQLSTATE classes of `_CONDEMNED`: 3819 is MySQL's violated CHECK, 4025
#: MariaDB's, 1369 that of a view; 1644 a trigger's SIGNAL of any class; 1118 a row that its page does not hold.
_RECORD = frozenset(
    {1048, 1118, 1264, 1265, 1292, 1300, 1366, 1369, 1406, 1411, 1452, 1644, 3140, 3144, 3157, 3819, 4025}
)
#: SQLSTATE classes: data exceptions and constraints (keys, foreign keys, NOT NULL, CHECK); and what a trigger raises by
#: SIGNAL, under whatever number it likes.
_CONDEMNED, _SIGNALLED = ("22", "23"), "45"
#: Errors that name the row of the statement reliably.
_ATTRIBUTED = frozenset({1264, 1265, 1292, 1366, 1406})
_ROW = re.compile(r"at row (\d+)")

_ADVICE = {
    1044: "grant the account access to the database",
    1045: "check user and password",
    1049: "create the database",
    1054: "add the column, or set create_table: true",
    1130: "create the account for this machine's address",
    1142: "grant the account what the sink's page lists",
    1143: "grant the account what the sink's page lists",
    1146: "create the table, or set create_table: true",
    1062: "a unique key of the table holds such a row already",
    1709: "run ALTER TABLE ... ROW_FORMAT=DYNAMIC",
    1226: "raise the account's resource limit",
    1129: "run FLUSH HOSTS on the server",
    1114: "free space on the server, or set retention",
    1021: "free space on the server, or set retention",
    1290: "the server is read-only; will connect anew and try again",
    2026: "check ssl_mode and ssl_ca, and that the server offers TLS",
}


def code(error: BaseException) -> int:
    """Give the server's or the client library's error number; 0 means lost, -1 not a database error."""
    if isinstance(error, pymysql.MySQLError):
        first = error.args[0] if error.args else 0
        return first & 0xFFFF if isinstance(first, int) else -1  # PyMySQL takes what is above 32,767 for negative
    return -1


def condemns(error: BaseException) -> bool:
    """Tell whether the error is the record's: the table, a constraint or a trigger refuses it and takes others."""
    if not isinstance(error, pymysql.MySQLError):
        return False
    number = code(error)
    if number in _RECORD:
        return True
    state = str(getattr(error, "sqlstate", "") or "")
    return state.startswith(_SIGNALLED) or (state.startswith(_CONDEMNED) and number not in OPERATOR)


def row_of(error: BaseException) -> int | None:
    """Give the index of the row within the statement that a strict error names, where that is reliable."""
    if code(error) not in _ATTRIBUTED:
        return None
    found = _ROW.search(str(error))
    return int(found[1]) - 1 if found and int(found[1]) > 0 else None


def keeps_connection(error: BaseException) -> bool:
    """Tell whether the connection may serve on: not after a loss, a failover or an oversized packet."""
    number = code(error)
    return number > 0 and number not in LOST | READ_ONLY | TOO_BIG | BUSY


def sorted_error(error: Exception, where: str) -> SinkError:
    """Make the delivery's kind of error of one of PyMySQL's, or of the socket's. ``where`` names the server."""
    if isinstance(error, SinkError):
        return error
    if isinstance(error, pymysql.MySQLError):
        return _of_server(error, where)
    if isinstance(error, ssl.SSLError):
        return ParkedError(f"{where}: TLS failed ({error}); {_ADVICE[2026]}", code="2026")
    if isinstance(error, RuntimeError):  # PyMySQL: 'cryptography' package is required for ... auth methods
        return ParkedError(f"{where}: {error}; install shipper[mysql] or use TLS", code="2061")
    return RetryableError(f"{where}: {error}", code="2013")


def _of_server(error: pymysql.MySQLError, where: str) -> SinkError:
    number = code(error)
    reason = str(error.args[1]) if len(error.args) > 1 else str(error)
    text = f"{where}: {reason or 'the connection was lost'} ({number})"
    if advice := _ADVICE.get(number):
        text = f"{text}; {advice}"
    name = str(number)
    original = getattr(error, "original_exception", None)
    if number == 2003 and isinstance(original, ssl.SSLError):
        return ParkedError(f"{text}; {_ADVICE[2026]}", code="2026")
    if condemns(error):
        return PermanentError(text, code=name)
    if number in OPERATOR:
        return ParkedError(text, code=name)
    if number in TOO_BIG:
        return PermanentError(f"{text}; raise max_allowed_packet on the server", code=name)
    if number in LOST | BUSY | LOCK | READ_ONLY | INTERRUPTED | FULL | PARTITION:
        return RetryableError(text, code=name)
    state = str(getattr(error, "sqlstate", "") or "")
    if state.startswith(("42", "28")):
        return ParkedError(text, code=name)
    return RetryableError(text, code=name)
