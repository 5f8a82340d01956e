"""From a node of the file to a typed section: every problem noted, none of them printing a secret."""

from __future__ import annotations

import re
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin

import msgspec

from shipper.config.document import Node, Problems, TooManyProblems, resolve, shortened
from shipper.errors import ConfigError
from shipper.registry import suggestion
from shipper.secret import MASK, is_secret_field, is_secret_member, masked_url
from shipper.units import parse_duration, parse_size

_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false", Path: "a path"}
_BAD: Any = object()
#: Fields that name a host or a URL, and what no such name has.
_PLACE = re.compile(r"(?:.*_)?(?:host|hostname|endpoint|url|listen)")
_NO_PLACE = re.compile(r"[\x00-\x20\x7f-\xa0\u2028\u2029\ufeff]")


def convert_struct(node: Node, cls: type[Any], where: str, problems: Problems) -> Any | None:
    """Make ``cls`` of a mapping. Gives ``None`` when anything was wrong; all of it is then in ``problems``.

    ``where`` is the dotted name of the section, such as ``sinks.mysql``, for the texts.
    """
    if not isinstance(node.value, dict):
        problems.add("E-CFG-TYPE", node, f"{where}: expected a mapping of keys to values, got {shown(node)}")
        return None
    before = len(problems)
    fields = {field.encode_name: field for field in msgspec.structs.fields(cls)}
    values: dict[str, Any] = {}
    for key, child in node.value.items():
        field = fields.get(key)
        if field is None:
            hint = suggestion(key, sorted(fields), noun="keys")
            problems.add("E-CFG-KEY", node.keys[key], f"{where}: unknown key {key!r}; {hint}")
            continue
        secret = is_secret_field(field.name, field.type)
        value = _convert(child, field.type, f"{where}.{key}", problems, field, secret=secret)
        if value is not _BAD:
            values[field.name] = value
    for key, field in fields.items():
        if field.required and key not in node.value:
            says = description(field.type).rstrip(".")
            problems.add("E-CFG-MISSING", node, f"{where}: key {key!r} is missing{f' ({says})' if says else ''}")
    if len(problems) > before:
        return None
    try:
        return cls(**values)
    except Exception as error:  # noqa: BLE001 - a section of any author; what it raises is about these values
        for text in complaints(error):
            problems.add("E-CFG-VALUE", node, f"{where}: {without_secrets(text, node, cls)}")
        return None


def complaints(error: BaseException) -> tuple[str, ...]:
    """Give the texts of what a class of a section, a plug-in or a condition raised."""
    if isinstance(error, TooManyProblems):
        raise error
    if isinstance(error, ConfigError):
        return error.problems
    return (str(error) if isinstance(error, ValueError | TypeError) else f"{type(error).__name__}: {error}",)


def without_secrets(text: str, node: Node, cls: type[Any] | None = None) -> str:
    """Hide every secret and every interpolated value of a section that a text happens to quote.

    ``cls`` is the class of the section, whose types tell what is secret.
    """
    for secret in sorted(_secrets(node, cls, hidden=False), key=len, reverse=True):
        text = text.replace(secret, MASK)
    return masked_url(text)


def shown(node: Node, *, secret: bool = False) -> str:
    """Say what a node holds, without giving away secrets or what came from the environment."""
    value = node.value
    if node.source is not None and not isinstance(value, list | dict):
        return f"what {MASK if secret else shortened(masked_url(node.source))!r} stands for"
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if secret:
        return MASK
    if isinstance(value, bool):
        return str(value).lower()
    return f"{shortened(masked_url(value))!r}" if isinstance(value, str) else f"the number {value}"


def description(kind: Any) -> str:
    """Give the description in a field's Meta, or ``""``."""
    return next((meta.description for meta in metas(kind) if meta.description), "")


def metas(kind: Any) -> list[msgspec.Meta]:
    """Give all Metas on an annotated type and its arms."""
    found: list[msgspec.Meta] = []
    if get_origin(kind) is Annotated:
        found += [meta for meta in kind.__metadata__ if isinstance(meta, msgspec.Meta)]
        kind = kind.__origin__
    if get_origin(kind) in {Union, types.UnionType}:
        for arm in get_args(kind):
            found += metas(arm)
    return found


def bare(kind: Any) -> Any:
    """Strip Annotated."""
    return kind.__origin__ if get_origin(kind) is Annotated else kind


def arms(kind: Any) -> list[Any]:
    """Give the members of a union, or the type itself."""
    kind = bare(kind)
    if get_origin(kind) in {Union, types.UnionType}:
        return [arm for member in get_args(kind) for arm in arms(member)]
    return [kind]


def unit(kind: Any, default: Any) -> str:
    """Tell whether a field holds a ``size`` or a ``duration``: its Meta says so, or its default shows it."""
    for meta in metas(kind):
        if meta.extra and "unit" in meta.extra:
            return str(meta.extra["unit"])
    members = set(arms(kind))
    if isinstance(default, str) and str in members and members & {int, float}:
        is_size, is_duration = _parses(parse_size, default), _parses(parse_duration, default)
        if is_size != is_duration:
            return "size" if is_size else "duration"
    return ""


def expected(kind: Any, default: Any = msgspec.NODEFAULT) -> str:
    """Say in words what a type takes, with an example where there is one."""
    what = {"size": "a size", "duration": "a duration"}.get(unit(kind, default), "")
    if not what:
        what = " or ".join(dict.fromkeys(_word(arm) for arm in arms(kind) if arm is not type(None)))
        what = choices_word(kind) or what
        what += _bounds(kind)
    example = next((meta.examples[0] for meta in metas(kind) if meta.examples), default)
    if isinstance(example, str | int | float) and example != "" and not what.startswith(("one of", "true")):
        return f"{what}, such as {example}"
    if isinstance(example, list | tuple) and example:
        return f"{what}, such as [{', '.join(map(str, example))}]"
    return what


def choices(kind: Any) -> list[str]:
    """Give the words a field is limited to by Literal or by a pattern like ``^(a|b)$``, else an empty list."""
    for arm in arms(kind):
        if get_origin(arm) is Literal:
            return [str(value) for value in get_args(arm)]
    for meta in metas(kind):
        if meta.pattern and meta.pattern.startswith("^(") and meta.pattern.endswith(")$"):
            words = meta.pattern[2:-2].split("|")
            if all(word.replace("_", "").replace("-", "").isalnum() for word in words):
                return words
    return []


def choices_word(kind: Any) -> str:
    """Say ``one of a, b, c`` for a field with choices, else ``""``."""
    words = choices(kind)
    return f"one of {', '.join(words)}" if words else ""


def _convert(node: Node, kind: Any, where: str, problems: Problems, field: Any, *, secret: bool) -> Any:
    members = arms(kind)
    value = node.value
    before = len(problems)
    made: Any
    if isinstance(value, dict):
        struct = next((arm for arm in members if isinstance(arm, type) and issubclass(arm, msgspec.Struct)), None)
        if struct is not None:
            made = convert_struct(node, struct, where, problems)
            return _BAD if made is None else made
        mapping = next((arm for arm in members if get_origin(arm) is dict), None)
        if mapping is not None:
            inner = get_args(mapping)[1]
            name = where.rpartition(".")[2]
            made = {
                key: _convert(
                    child, inner, f"{where}.{key}", problems, None, secret=secret or is_secret_member(name, key)
                )
                for key, child in value.items()
            }
            return (
                _BAD
                if len(problems) > before
                else _check(made, node, kind, where, problems=problems, field=field, secret=secret)
            )
    if isinstance(value, list):
        sequence = next((arm for arm in members if get_origin(arm) in {list, tuple, set, frozenset}), None)
        if sequence is not None:
            inner = get_args(sequence)[0]
            made = [
                _convert(child, inner, f"{where}[{i}]", problems, None, secret=secret) for i, child in enumerate(value)
            ]
            return (
                _BAD
                if len(problems) > before
                else _check(made, node, kind, where, problems=problems, field=field, secret=secret)
            )
    return _check(node.plain(), node, kind, where, problems=problems, field=field, secret=secret)


def _check(value: Any, node: Node, kind: Any, where: str, *, problems: Problems, field: Any, secret: bool) -> Any:
    """Let msgspec judge a value whose parts are converted already; tell a refusal in our words."""
    default = msgspec.NODEFAULT if field is None else field.default
    try:
        made = _strict(value, node, kind)
        measure = {"size": parse_size, "duration": parse_duration}.get(unit(kind, default))
        if measure is not None and made is not None:
            cast("Any", measure)(made)
    except (msgspec.ValidationError, ValueError, TypeError, OverflowError):
        hint = ""
        words = choices(kind)
        if words and isinstance(node.value, str) and node.source is None:
            close = suggestion(node.value, words, noun="words")
            hint = f"; {close}" if close.startswith("did") else ""
        elif str in arms(kind) and isinstance(node.value, int | float):
            hint = "; put it in quotes" if not unit(kind, default) else ""
        text = f"{where}: expected {expected(kind, msgspec.NODEFAULT if secret else default)}, got {shown(node, secret=secret)}{hint}"
        problems.add("E-CFG-TYPE", node, text)
        return _BAD
    if isinstance(made, str) and field is not None and _PLACE.fullmatch(field.name) and _NO_PLACE.search(made):
        text = f"{where}: no host and no URL has a space or a control character, got {shown(node, secret=secret)}"
        problems.add("E-CFG-VALUE", node, text)
        return _BAD
    return made


def _strict(value: Any, node: Node, kind: Any) -> Any:
    if isinstance(value, str) and node.source is not None:
        try:
            return msgspec.convert(value, kind, dec_hook=_decode)
        except msgspec.ValidationError:
            return msgspec.convert(resolve(value), kind, dec_hook=_decode)
    return msgspec.convert(value, kind, dec_hook=_decode)


def _decode(kind: type[Any], value: Any) -> Any:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise TypeError(f"cannot make {kind.__name__}")


def _word(arm: Any) -> str:
    origin = get_origin(arm)
    if origin in {list, tuple, set, frozenset}:
        inner = [word for word in map(_word, arms(get_args(arm)[0])) if word]
        return f"a list of {' or '.join(inner)}" if inner else "a list"
    if origin is Literal:
        return f"one of {', '.join(map(str, get_args(arm)))}"
    if origin is dict or arm is dict or (isinstance(arm, type) and issubclass(arm, msgspec.Struct)):
        return "a mapping"
    return _WORDS.get(arm, getattr(arm, "__name__", str(arm)))


def _bounds(kind: Any) -> str:
    found = []
    for meta in metas(kind):
        if meta.ge is not None and meta.le is not None:
            found.append(f"from {meta.ge} to {meta.le}")
            continue
        found += [
            f"{text} {bound}"
            for text, bound in (
                ("at least", meta.ge),
                ("above", meta.gt),
                ("at most", meta.le),
                ("below", meta.lt),
                ("of length at least", meta.min_length),
                ("of length at most", meta.max_length),
            )
            if bound is not None
        ]
        if meta.pattern and not choices(kind):
            found.append(f"that matches {meta.pattern}")
    return f" {' and '.join(found)}" if found else ""


def _parses(parse: Any, text: str) -> bool:
    try:
        parse(text)
    except ValueError:
        return False
    return True


def _secrets(node: Node, cls: Any, *, hidden: bool, within: str = "") -> list[str]:
    if isinstance(node.value, dict):
        fields = {field.encode_name: field.type for field in msgspec.structs.fields(cls)} if cls is not None else {}
        return [
            text
            for key, child in node.value.items()
            for text in _secrets(
                child,
                _struct(fields.get(key)),
                hidden=hidden or is_secret_member(within, key) or is_secret_field(key, fields.get(key)),
                within=key,
            )
        ]
    if isinstance(node.value, list):
        return [text for child in node.value for text in _secrets(child, cls, hidden=hidden, within=within)]
    shown = not hidden and node.source is None
    return [] if shown or node.value in {None, ""} or isinstance(node.value, bool) else [str(node.value)]


def _struct(kind: Any) -> Any:
    """Give the section that a field's type holds, or a list of it; ``None`` for any other."""
    for arm in arms(kind):
        if isinstance(arm, type) and issubclass(arm, msgspec.Struct):
            return arm
        if get_origin(arm) in {list, tuple}:
            return _struct(get_args(arm)[0])
    return None
