"""Insert records into a table of MySQL or MariaDB, each exactly once.

* Protocol: the client/server protocol through PyMySQL; the same SQL for MySQL 8 and later and MariaDB 10.11.
* Table: `sinks._sql` says what stands in which column; `sinks.mysql.schema` has the DDL.
* Guarantee: one transaction per batch, and returning means that COMMIT was answered. The primary key
  ``(created_at, id)`` makes a repeated row a no-op. All SQL modes are strict, so no value is cut or changed.
* Limits: 5,000 rows a batch; a record may take the server's ``max_allowed_packet``.
* Errors: `sinks.mysql.faults`, by number.
"""

from __future__ import annotations

from sinks.mysql.config import MysqlConfig
from sinks.mysql.reader import MysqlReader
from sinks.mysql.sink import MysqlSink

SINK = MysqlSink
READER = MysqlReader

__all__ = ["READER", "SINK", "MysqlConfig", "MysqlReader", "MysqlSink"]
