"""Loads the configuration: YAML to checked, typed sections, with every problem of the file told at once.

Relative paths in the file are relative to the directory of the file, so that a daemon started anywhere and a
``shipper check`` in a terminal mean the same files; a secret file is first looked for among the credentials that
systemd loaded. Secret files must be there for the sinks in use only, so that the sinks of a later phase can stand in
the file already. Root keys beginning with ``x-`` are free, for YAML anchors.
"""

from __future__ import annotations

import os
import re
import select
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from xxhash import xxh3_128_hexdigest

from shipper import registry
from shipper.config.convert import complaints, convert_struct, metas, shown, without_secrets
from shipper.config.document import Node, Problems, TooManyProblems, parse
from shipper.config.types import SHUTDOWN_TIMEOUT, STATE_DIR, Config, HttpConfig, LogConfig
from shipper.errors import ConfigError
from shipper.routing.router import RouteConfig
from shipper.secret import is_secret, is_secret_stem
from shipper.source import SourceConfig
from shipper.units import parse_duration

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT_KEYS = ("sources", "sinks", "active", "routes", "transforms", "state_dir", "http", "log", "shutdown_timeout")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_PATH_FIELD = re.compile(r"(?:.*_)?(?:file|path|dir|directory)")
_MAX_FILE = 1 << 20
#: Seconds that a pipe which stands for the file has for all of it.
PIPE_TIMEOUT = 5.0


def load(path: str | os.PathLike[str], environ: Mapping[str, str], *, secrets: bool = True) -> Config:
    """Read, check and convert the file; without ``secrets``, do not look whether the secret files are there.

    Raises ConfigError with every problem, in the order of the file.
    """
    shown = os.fspath(path)
    try:
        data = _bytes(path)
    except OSError as error:
        raise ConfigError(_unreadable(shown, error)) from error
    except ValueError as error:  # NUL in the path
        raise ConfigError(
            f"E-CFG-FILE {shown!r}: this cannot be a path ({error}); name the file with --config"
        ) from error
    if len(data) > _MAX_FILE:
        raise ConfigError(f"E-CFG-FILE {shown}: larger than {_MAX_FILE >> 20} MiB; this is not a config of shipper")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - (data.rfind(b"\n", 0, error.start) + 1) + 1
        raise ConfigError(f"E-CFG-FILE {shown}:{line}:{column} not UTF-8 text; save the file as UTF-8") from error
    return loads(text, environ, path=Path(path), secrets=secrets)


def loads(text: str, environ: Mapping[str, str], *, path: Path = Path("shipper.yaml"), secrets: bool = True) -> Config:
    """Check and convert the text of a configuration; ``path`` names it and anchors relative paths. See `load`."""
    problems = Problems(str(path))
    config = None
    try:
        root = parse(text, environ, problems)
        if root is not None:
            config = _Loading(root, environ, path, problems, secrets=secrets).config()
        elif not problems:
            problems.add("E-CFG-MISSING", (1, 1), "the file is empty; it needs at least one source and one sink")
    except TooManyProblems:
        pass
    except (RecursionError, MemoryError) as error:
        raise ConfigError(
            f"E-CFG-FILE {path}: too large or too deep for this machine ({type(error).__name__})"
        ) from error
    if problems or config is None:
        raise ConfigError(*problems.texts())
    return config


def _bytes(path: str | os.PathLike[str]) -> bytes:
    """Read a file, or a pipe that stands for one, up to one byte more than any configuration has. Raises OSError."""
    # Opening a pipe that nobody writes would wait for ever, and a daemon that reloads with it.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return file.read(_MAX_FILE + 1) or b""
        data, deadline = b"", time.monotonic() + PIPE_TIMEOUT
        while len(data) <= _MAX_FILE:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError
            more = os.read(descriptor, _MAX_FILE + 1 - len(data))
            if not more:
                break
            data += more
        return data


class _Loading:
    """One load of one file."""

    def __init__(
        self, root: Node, environ: Mapping[str, str], path: Path, problems: Problems, *, secrets: bool
    ) -> None:
        self._root = root
        self._environ = environ
        self._path = path
        self._base = path.absolute().parent
        self._problems = problems
        self._secrets = secrets

    def config(self) -> Config | None:
        if not isinstance(self._root.value, dict):
            self._problems.add("E-CFG-TYPE", self._root, f"expected a mapping with the keys {', '.join(ROOT_KEYS)}")
            return None
        for key in self._root.value:
            if key not in ROOT_KEYS and not key.startswith("x-"):
                hint = registry.suggestion(key, list(ROOT_KEYS), noun="keys")
                self._problems.add("E-CFG-KEY", self._root.keys[key], f"unknown key {key!r}; {hint}")
        sources = self._components("sources", registry.SOURCES, "docker: {type: docker}")
        sinks = self._components("sinks", registry.SINKS, "archive: {type: sqlite}")
        transforms = self._components("transforms", registry.TRANSFORMS, "")
        active = self._active()
        routes = self._routes()
        state_dir = self._state_dir()
        self._keep_from_state(sinks, state_dir)
        http = self._section("http", HttpConfig)
        log = self._section("log", LogConfig)
        shutdown_timeout = self._shutdown_timeout()
        if self._problems:
            return None
        return Config(
            sources=sources,
            sinks=sinks,
            active=active,
            routes=routes,
            transforms=transforms,
            state_dir=state_dir,
            http=http,
            log=log,
            shutdown_timeout=shutdown_timeout,
            path=self._path,
        )

    def _child(self, key: str) -> Node | None:
        node: Node | None = self._root.value.get(key)
        return node

    def _components(self, key: str, kind: registry.ComponentKind, example: str) -> dict[str, Any]:
        node = self._child(key)
        if node is None or node.value is None or node.value == {}:
            if example:
                place = (1, 1) if node is None else self._root.keys[key]
                self._problems.add("E-CFG-MISSING", place, f"{key}: at least one is needed, such as {example}")
            return {}
        if not isinstance(node.value, dict):
            text = f"{key}: expected a mapping of names to {key}, got {shown(node)}"
            self._problems.add("E-CFG-TYPE", node, text)
            return {}
        made: dict[str, Any] = {}
        for name, section in node.value.items():
            where = f"{key}.{name}"
            if not _NAME.fullmatch(name):
                text = f"{key}: {name!r} cannot be a name; use letters, digits, - and _, at most 63, such as 'logs_db'"
                self._problems.add("E-CFG-VALUE", node.keys[name], text)
            elif kind is registry.SINKS and self._is_idle(name, section):
                continue
            elif (cls := self._class(section, kind, where)) is not None:
                found = self._component(section, cls, where)
                if found is not None:
                    made[name] = found
        return made

    def _is_idle(self, name: str, section: Node) -> bool:
        """Tell whether a sink is not in use and cannot be: its client library is missing. Its day may yet come."""
        kind = section.value.get("type") if isinstance(section.value, dict) else None
        return (
            kind is not None and isinstance(kind.value, str) and name not in self._used() and _lacks_package(kind.value)
        )

    def _class(self, section: Node, kind: registry.ComponentKind, where: str) -> type[Any] | None:
        if not isinstance(section.value, dict):
            text = f"{where}: expected a mapping with a type, such as {{type: name}}, got {shown(section)}"
            self._problems.add("E-CFG-TYPE", section, text)
            return None
        named = section.value.get("type")
        if named is None or not isinstance(named.value, str):
            known = ", ".join(registry.names(kind))
            code = "E-CFG-MISSING" if named is None else "E-CFG-TYPE"
            what = "key 'type' is missing" if named is None else f"type: expected text, got {shown(named)}"
            self._problems.add(code, named or section, f"{where}: {what}; known types: {known}")
            return None
        try:
            return registry.load(kind, named.value)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a plug-in may raise anything while it is imported
            for text in complaints(error):
                self._problems.add("E-CFG-PLUGIN", named, f"{where}: {without_secrets(text, named)}")
            return None

    def _component(self, section: Node, cls: type[Any], where: str) -> Any | None:
        made = convert_struct(section, cls.config, where, self._problems)
        if made is None:
            return None
        made = self._anchored(made, section)
        kind, _, name = where.partition(".")
        if self._secrets and (kind != "sinks" or name in self._used()):
            self._secret_files(made, section, where)
        if where.startswith("transforms."):
            try:
                cls(made)
            except Exception as error:  # noqa: BLE001 - a transform of any author, about this section
                for text in complaints(error):
                    self._problems.add("E-CFG-VALUE", section, f"{where}: {without_secrets(text, section, cls.config)}")
                return None
        return made

    def _anchored(self, made: Any, section: Node) -> Any:
        """Make the relative paths that the file itself names relative to the file's directory."""
        changes: dict[str, Any] = {}
        for field in msgspec.structs.fields(made):
            if field.encode_name not in section.value:
                continue
            marked = any(meta.extra and meta.extra.get("path") for meta in metas(field.type))
            globs = field.name in {"include", "exclude"} and isinstance(made, SourceConfig)
            if not marked and not globs and not _PATH_FIELD.fullmatch(field.name):
                continue
            value = getattr(made, field.name)
            if credential := self._credential(field.name, value):
                changes[field.name] = credential
            elif isinstance(value, list | tuple):
                # An exclude that begins with * is about names anywhere, not about a place.
                anywhere = "*" if field.name == "exclude" else "\0"
                changes[field.name] = type(value)(
                    v if str(v).startswith(anywhere) else self._absolute(v) for v in value
                )
            elif isinstance(value, str | Path):
                changes[field.name] = self._absolute(value)
        return msgspec.structs.replace(made, **changes) if changes else made

    def _credential(self, field: str, value: Any) -> str:
        """Give the place of a secret that systemd loaded for us, named by a relative path; "" when it is none.

        systemd reads files as root and shows the service copies in one flat directory. What LoadCredential=ID:FILE
        loads is named ID, what LoadCredential=ID:DIRECTORY loads is named ID_FILE: so a secret that the configuration
        calls ``ID`` or ``ID/FILE`` is found there, and beside the configuration when no service is running.
        """
        given = self._environ.get("CREDENTIALS_DIRECTORY")
        if not given or not field.endswith("_file") or not is_secret(field.removesuffix("_file")):
            return ""
        if not isinstance(value, str) or not value or value.startswith("/"):
            return ""
        path = os.path.join(given, os.path.normpath(value).replace("/", "_"))  # noqa: PTH118 - with isfile
        # Unlike Path.is_file: false, too, where we may not look.
        return path if os.path.isfile(path) else ""  # noqa: PTH113

    def _absolute(self, value: Any) -> Any:
        text = str(value)
        if not text or text in {"-", ":memory:"} or text.startswith(("/", "{")):
            return value
        return type(value)(os.path.normpath(self._base / text)) if isinstance(value, str | Path) else value

    def _used(self) -> set[str]:
        """Give the names of the sinks that get records; the others may lack their secrets until their day comes."""
        active, routes = self._child("active"), self._child("routes")
        nodes = [] if active is None else [active]
        if routes is not None and isinstance(routes.value, list):
            nodes += [item.value["to"] for item in routes.value if isinstance(item.value, dict) and "to" in item.value]
        if active is None:
            return set(self._root.value["sinks"].value)
        items = [item for node in nodes for item in (node.value if isinstance(node.value, list) else [node])]
        return {item.value for item in items if isinstance(item.value, str)}

    def _secret_files(self, made: Any, section: Node, where: str) -> None:
        for field in msgspec.structs.fields(made):
            name, ending = field.name.removesuffix("_file"), field.name.endswith("_file")
            if not ending or not is_secret_stem(made, name) or not (value := getattr(made, field.name)):
                continue
            place = section.value.get(field.encode_name, section)
            key = f"{where}.{field.encode_name}"
            if getattr(made, name, None):
                text = f"{where}: give {name} or {field.name}, not both"
                self._problems.add("E-CFG-SECRET", place, text)
                continue
            try:
                if not stat.S_ISREG(os.stat(value).st_mode):  # noqa: PTH116 - a pipe would hold us up when opened
                    self._problems.add("E-CFG-SECRET", place, f"{key}: {value} is not a file; name one that holds it")
                    continue
                with Path(value).open("rb") as file:
                    if not file.read(1):
                        self._problems.add("E-CFG-SECRET", place, f"{key}: {value} is empty; write the {name} into it")
            except OSError as error:
                hint = "create it" if isinstance(error, FileNotFoundError) else f"let user id {os.geteuid()} read it"
                text = f"{key}: cannot read {value} ({error.strerror}); {hint}"
                self._problems.add("E-CFG-SECRET", place, text)

    def _names(self, node: Node, key: str) -> tuple[tuple[str, Node], ...]:
        """Give the sink names at a node, each checked to exist."""
        items = node.value if isinstance(node.value, list) else [node]
        sinks = self._child("sinks")
        known = list(sinks.value) if sinks is not None and isinstance(sinks.value, dict) else []
        found: list[tuple[str, Node]] = []
        if not items:
            self._problems.add("E-CFG-REF", node, f"{key}: the list is empty; name at least one sink")
        for item in items:
            if not isinstance(item.value, str):
                example = known[0] if known else "mysql"
                text = f"{key}: expected the name of a sink or a list of names, such as {example}, got {shown(item)}"
                self._problems.add("E-CFG-TYPE", item, text)
            elif item.value not in known:
                hint = registry.suggestion(item.value, known, noun="sinks")
                self._problems.add("E-CFG-REF", item, f"{key}: there is no sink {shown(item)}; {hint}")
            elif item.value in {name for name, _ in found}:
                self._problems.add("E-CFG-REF", item, f"{key}: sink {item.value!r} is named twice; remove one")
            else:
                found.append((item.value, item))
        return tuple(found)

    def _active(self) -> tuple[str, ...]:
        node = self._child("active")
        if node is not None:
            return tuple(name for name, _ in self._names(node, "active"))
        sinks = self._child("sinks")
        names = list(sinks.value) if sinks is not None and isinstance(sinks.value, dict) else []
        if len(names) > 1:
            text = f"active: say which of the sinks {', '.join(names)} gets the records, such as active: {names[0]}"
            self._problems.add("E-CFG-MISSING", (1, 1), text)
        return tuple(names)

    def _routes(self) -> tuple[RouteConfig, ...]:
        node = self._child("routes")
        if node is None or node.value is None:
            return ()
        if not isinstance(node.value, list):
            example = "[{match: 'level>=error', to: mysql}]"
            text = f"routes: expected a list of routes, such as {example}, got {shown(node)}"
            self._problems.add("E-CFG-TYPE", node, text)
            return ()
        made = []
        for number, item in enumerate(node.value):
            where = f"routes[{number}]"
            route = convert_struct(item, RouteConfig, where, self._problems)
            if route is None:
                continue
            self._names(item.value["to"], f"{where}.to")
            self._condition(item.value["match"], f"{where}.match")
            made.append(route)
        return tuple(made)

    def _condition(self, node: Node, where: str) -> None:
        from shipper.routing.condition import compile_condition  # noqa: PLC0415 - most configs have no routes

        try:
            compile_condition(node.value)
        except Exception as error:  # noqa: BLE001 - about this text, whatever it is
            for text in complaints(error):
                self._problems.add("E-CFG-MATCH", node, f"{where}: {without_secrets(text, node)}")

    def _section(self, key: str, cls: type[Any]) -> Any:
        node = self._child(key)
        if node is None or node.value is None:
            return cls()
        return convert_struct(node, cls, key, self._problems)

    def _state_dir(self) -> Path:
        node = self._child("state_dir")
        if node is None:
            given = self._environ.get("STATE_DIRECTORY", "").split(":")[0]
            return Path(given) if given else STATE_DIR
        if not isinstance(node.value, str) or not node.value:
            text = f"state_dir: expected a path, such as {STATE_DIR}, got {shown(node)}"
            self._problems.add("E-CFG-TYPE", node, text)
            return STATE_DIR
        return Path(self._absolute(node.value))

    def _keep_from_state(self, sinks: dict[str, Any], state_dir: Path) -> None:
        """Refuse a sink that would write into the daemon's own database; by another SQLite, both would be damaged."""
        own = os.path.realpath(state_dir / "state.db")
        for name, made in sinks.items():
            path = getattr(made, "path", None)
            if isinstance(path, str) and os.path.realpath(path) == own:
                section = self._root.value["sinks"].value[name]
                text = f"sinks.{name}.path: {path} is the daemon's own state; choose another file"
                self._problems.add("E-CFG-VALUE", section.value.get("path", section), text)

    def _shutdown_timeout(self) -> float:
        node = self._child("shutdown_timeout")
        if node is None:
            return SHUTDOWN_TIMEOUT
        try:
            if isinstance(node.value, str | int | float):
                return parse_duration(node.value)
        except ValueError:
            pass
        text = f"shutdown_timeout: expected a duration, such as 30s, got {shown(node)}"
        self._problems.add("E-CFG-TYPE", node, text)
        return SHUTDOWN_TIMEOUT


def _lacks_package(kind: str) -> bool:
    try:
        return registry.lacks_package(registry.SINKS, kind)
    except (Exception, SystemExit):  # noqa: BLE001 - told where the class is asked for
        return False


def fingerprint(path: Path | None) -> str:
    """Give 12 hex digits that change when the bytes of a configuration's file do; ``""`` when there is none."""
    # hashlib would bring libcrypto: 3 ms and 3.6 MiB. Whoever could forge a collision may write the file anyway.
    return xxh3_128_hexdigest(path.read_bytes())[:12] if path is not None and path.is_file() else ""


def _unreadable(shown: str, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return (
            f"E-CFG-FILE {shown}: there is no such file; name it with --config or write one (see config/shipper.yaml)"
        )
    if isinstance(error, IsADirectoryError):
        return f"E-CFG-FILE {shown}: this is a directory; name the file in it, such as {shown.rstrip('/')}/shipper.yaml"
    if isinstance(error, TimeoutError):
        return f"E-CFG-FILE {shown}: this is a pipe, and nothing came out of it within {PIPE_TIMEOUT:g} s; name a file"
    return f"E-CFG-FILE {shown}: cannot be read ({error.strerror}); let user id {os.geteuid()} read it"
