"""Redact: take secrets out of message, attributes and raw line.

A row is looked at only if a cheap search says that a rule may match it. In the raw line of a JSON record a secret may
be written with escapes, an at sign as a code point, say; therefore a raw JSON line is decoded again after masking, and
when a secret is still in it, or masking broke its JSON, it is written anew from the masked object. Lines that no rule
matches are never touched, not even in their spacing.

All of it takes time linear in the text, whatever the text is: no expression of ours tries again what it has taken, and
those of the user's run on `shipper.routing.pattern`. A quoted secret that does not end (a line that was cut) is masked
to the end of its text.

``mask`` writes ``[redacted:email]``; ``hash`` writes ``[redacted:email#<12 hex digits>]``, the same for the same
secret and salt, so that records can still be told to belong together.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator
from functools import partial
from hashlib import blake2b
from itertools import accumulate, repeat
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from shipper.errors import ConfigError
from shipper.parse.levels import ANSI
from shipper.parse.objects import decode_object
from shipper.record import Batch
from shipper.routing.pattern import Pattern, PatternError
from shipper.secret import Secret
from shipper.transform import Transform, TransformConfig

_MARK: Final = "[redacted:"

_KEY_WORDS: Final = (
    r"(?:pass(?:word|wd|phrase)|pwd|secret|api[_-]?key|private[_-]?key|secret[_-]?access[_-]?key)"
    r"(?:[_-]?(?:hash|confirm(?:ation)?|again|repeat|new|old|\d))?"
)
_BEARER_WORDS: Final = r"(?:authorization|token)"
# A value after a key: quoted at any depth of escaping, or a bare word without the punctuation that follows it.
_QUOTED: Final = (
    r'(?:"(?P<double>[^"\\]*+(?:\\.[^"\\]*+)*+)(?:"|\\?\Z)'
    r"|'(?P<single>[^'\\]*+(?:\\.[^'\\]*+)*+)(?:'|\\?\Z)"
    r'|(?P<escapes>\\++)"(?P<escaped>.*?)(?:(?<!\\)(?P=escapes)"|\Z)'
)
_BARE_IN_JSON: Final = r"|(?P<bare>[^\s\"'&\\{\[]?[^\s\"'&\\]*[^\s\"'&\\,;)}\]]))"
_BARE: Final = r"|(?P<bare>(?!\\++\")[^\s\"'&{\[]?[^\s\"'&]*[^\s\"'&,;)}\]]))"
_SCHEME: Final = r"(?:(?:bearer|basic|digest|token)\s++)?"
_SEPARATOR: Final = r"(?:\\*+[\"'])?\s{0,4}(?:=>|[:=])\s{0,4}"

_JWT: Final = r"(?<![\w-])eyJ[\w-]{5,}(?:\.[\w-]*){2,4}"
_BEARER: Final = r"(?i:\bbearer)\s{1,4}(?P<bare>[\w.~+/=-]{8,})"
_EMAIL: Final = r"(?<![\w.%+-])[\w.%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){1,8}"
_USERINFO: Final = r"://[^\s/:@\"']{0,128}:(?P<bare>[^\s/@\"']{1,256})@"
_AWS: Final = r"(?<![A-Za-z0-9])(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}(?![A-Za-z0-9])"
_AWS_VALUE: Final = (
    r"(?i:aws.?secret.?access.?key|secret.?access.?key)[\W_]{1,8}(?P<bare>[A-Za-z0-9/+]{40})(?![A-Za-z0-9/+=])"
)
_DIGITS: Final = re.compile(r"(?<![\w.])\d(?:[ -]?\d){12,}(?![\w])", re.ASCII)
#: Lengths by issuer (ISO/IEC 7812): Visa, Mastercard and JCB, American Express, Diners, all others.
_CARD = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|(?:5[1-5]|2[2-7]|35)\d{14}|3[47]\d{13}|3(?:0[0-5]|[689]\d)\d{11}|(?:6\d|5[0678])\d{14,17}"
)
#: Digits that those numbers have, the most first, by the digit they begin with.
_CARD_LENGTHS: Final = {"2": (16,), "3": (16, 15, 14), "4": (19, 16, 13), "5": (19, 18, 17, 16), "6": (19, 18, 17, 16)}
_LEAST_DIGITS: Final = 13
_TO_ZERO: Final = bytes(48 if 48 <= byte <= 57 else byte for byte in range(256))
_SEPARATORS: Final = re.compile("[ -]")
#: Each digit by the Luhn sum when it stands at a doubled place.
_DOUBLED: Final = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)


class RedactRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A rule of the user's own."""

    name: Annotated[str, Meta(description="Stands in the mask: [redacted:NAME].", pattern=r"^[A-Za-z0-9_.-]+$")]
    pattern: Annotated[str, Meta(description="A regular expression as RE2 takes it; the whole match is masked.")]


class RedactConfig(TransformConfig, frozen=True, kw_only=True):
    """Takes secrets out of message, attributes and raw line."""

    rules: Annotated[
        list[str | RedactRule],
        Meta(
            description="Any of password, bearer_token, jwt, email, card, aws_key, or {name, pattern}: see docs/reference/filter-language.md.",
            min_length=1,
        ),
    ]
    mode: Annotated[
        str,
        Meta(description="mask hides the secret, hash puts a salted hash in its place.", pattern="^(mask|hash)$"),
    ] = "mask"
    salt: Annotated[
        Secret, Meta(description="The salt of mode hash. Keep it secret: with it, guesses can be tested.")
    ] = ""
    salt_file: Annotated[str, Meta(description="A file that holds the salt.")] = ""


class _Rule:
    """One rule: expressions for decoded text and for raw JSON, words that a matching row must hold, and secret keys.

    Of a rule of the user's there is but the one expression, and every row may match.
    """

    def __init__(
        self,
        name: str,
        expressions: list[str],
        *,
        needles: tuple[bytes, ...] = (),
        keys: str = "",
        card: bool = False,
        user: Pattern | None = None,
    ) -> None:
        self.name = name
        self.needles = needles
        self.card = card
        self.user = user
        self.keys = re.compile(rf"(?:{keys})$", re.IGNORECASE) if keys else None
        decoded, in_json = list(expressions), list(expressions)
        if keys:
            pair = rf"(?i:{keys}){_SEPARATOR}(?i:{_SCHEME})"
            pair_quoted = rf"{pair}{_QUOTED}"
            decoded.append(pair_quoted + _BARE)
            in_json.append(pair_quoted + _BARE_IN_JSON)
        self.decoded = [re.compile(pattern, re.DOTALL) for pattern in decoded]
        self.in_json = [re.compile(pattern, re.DOTALL) for pattern in in_json]

    def may_match(self, text: bytes) -> bool:
        """Tell whether lower-case bytes may hold a match."""
        if self.card:
            return b"0" * _LEAST_DIGITS in text.translate(_TO_ZERO, b" -")
        return not self.needles or any(needle in text for needle in self.needles)


def _built_in() -> dict[str, _Rule]:
    rules = [
        _Rule(
            "password",
            [_USERINFO],
            needles=(b"pass", b"pwd", b"secret", b"key", b"://"),
            keys=_KEY_WORDS,
        ),
        _Rule("bearer_token", [_BEARER], needles=(b"bearer", b"token", b"authorization"), keys=_BEARER_WORDS),
        _Rule("jwt", [_JWT], needles=(b"eyj",)),
        _Rule("email", [_EMAIL], needles=(b"@",)),
        _Rule("card", [], card=True),
        _Rule("aws_key", [_AWS, _AWS_VALUE], needles=(b"akia", b"asia", b"abia", b"acca", b"access")),
    ]
    return {rule.name: rule for rule in rules}


class RedactTransform(Transform):
    """Masks what the rules match. Raises ConfigError for an unknown rule, a bad pattern or a missing salt."""

    config = RedactConfig
    wants_parse = False

    def __init__(self, config: RedactConfig) -> None:
        known = _built_in()
        problems: list[str] = []
        self._rules: list[_Rule] = []
        for rule in config.rules:
            if isinstance(rule, str):
                if rule in known:
                    self._rules.append(known[rule])
                else:
                    problems.append(f"no redact rule is called {rule!r}; use {', '.join(known)} or a name and pattern")
                continue
            try:
                self._rules.append(_Rule(rule.name, [], user=Pattern(rule.pattern)))
            except PatternError as error:
                where = f"(column {error.position + 1})"
                problems.append(
                    f"the pattern of redact rule {rule.name!r} is no regular expression that is supported {where}: {error}"
                )
        self._key = b""
        if config.mode == "hash":
            try:
                salt = Path(config.salt_file).read_bytes().strip() if config.salt_file else config.salt.encode()
            except OSError as error:
                problems.append(f"cannot read salt_file {config.salt_file}: {error.strerror}; the hash needs it")
            else:
                if not salt:
                    problems.append("mode hash needs a salt: give salt or salt_file, or use mode mask")
                self._key = blake2b(salt).digest()
        if problems:
            raise ConfigError(*problems)
        self.expressions = tuple(rule.user.source for rule in self._rules if rule.user is not None)
        self._masker = _Masker(self._rules, self._key)
        self._maskers: dict[tuple[str, ...], _Masker] = {}

    def apply(self, batch: Batch) -> Batch:
        """Mask secrets of all rows. Rows without one keep their very objects."""
        raws = batch.raws
        joined = "\n".join(raws).encode("utf-8", "replace").lower()
        odd = _may_hide(joined)
        rules = [rule for rule in self._rules if rule.may_match(joined)]
        if not rules and not odd:
            return batch
        raws = batch.raws = list(raws)
        messages = batch.messages = None if batch.messages is None else list(batch.messages)
        attributes = batch.attributes = None if batch.attributes is None else list(batch.attributes)
        for i, raw in enumerate(raws):
            low = raw.encode("utf-8", "replace").lower()
            masker = self._masker
            if not (odd and _may_hide(low)):
                # All that was parsed stands in the line itself.
                masker = self._masker_of([rule for rule in rules if rule.may_match(low)])
            if masker.rules:
                raws[i] = masker.raw(raw)
                if messages is not None:
                    messages[i] = raws[i] if messages[i] == raw and raw[:1] != "{" else masker.text(messages[i])
                if attributes is not None and attributes[i]:
                    attributes[i] = masker.value(attributes[i])
        return batch

    def text(self, text: str) -> str:
        """Mask a decoded text."""
        return self._masker.text(text)

    def value(self, value: Any) -> Any:
        """Mask an attribute's value, texts at any depth."""
        return self._masker.value(value)

    def raw(self, raw: str) -> str:
        """Mask a raw line."""
        return self._masker.raw(raw)

    def _masker_of(self, rules: list[_Rule]) -> _Masker:
        if len(rules) == len(self._rules):
            return self._masker
        names = tuple(rule.name for rule in rules)
        found = self._maskers.get(names)
        if found is None:
            found = self._maskers[names] = _Masker(rules, self._key)
        return found


class _Masker:
    """Masks by some rules. With a ``key`` a hash of the secret stands in its place."""

    def __init__(self, rules: list[_Rule], key: bytes) -> None:
        self.rules = rules
        self._key = key
        self._probe = _probe_of(rules)

    def text(self, text: str) -> str:
        """Mask a decoded text."""
        if self._probe is not None and self._probe.search(text) is None:
            return text
        return self._masked(text, in_json=False)

    def value(self, value: Any) -> Any:
        """Mask an attribute's value, texts at any depth; under a secret key whatever is there is masked whole."""
        if not isinstance(value, dict | list):
            return self._leaf(value)
        made: dict[Any, Any] | list[Any] = {} if isinstance(value, dict) else []
        changed = False
        # A stack of our own, because the interpreter's has an end.
        open_values: list[tuple[Iterator[tuple[Any, Any]], dict[Any, Any] | list[Any]]] = [(_members(value), made)]
        while open_values:
            members, into = open_values[-1]
            for key, member in members:
                name, new = key, member
                inner: dict[Any, Any] | list[Any] | None = None
                if isinstance(into, dict):
                    name = self.text(key) if isinstance(key, str) else key  # a map may be keyed by e-mail addresses
                    new = self._under_key(key, member)
                if new is member:
                    if isinstance(member, dict | list):
                        new = inner = {} if isinstance(member, dict) else []
                    else:
                        new = self._leaf(member)
                changed = changed or name != key or (inner is None and new is not member)
                if isinstance(into, dict):
                    into[name] = new
                else:
                    into.append(new)
                if inner is not None:
                    open_values.append((_members(member), inner))
                    break
            else:
                open_values.pop()
        return made if changed else value

    def raw(self, raw: str) -> str:
        """Mask a raw line."""
        if "\x1b" in raw:
            # Colours may stand inside a secret or its key: judge the bare text, and let the colours go with a secret.
            bare = ANSI.sub("", raw)
            if bare != raw:
                masked = self._masked_raw(bare)
                return raw if masked == bare else masked
        return self._masked_raw(raw)

    def _masked_raw(self, raw: str) -> str:
        if raw.lstrip()[:1] != "{" or raw.rstrip()[-1:] != "}":
            return self.text(raw)
        found = decode_object(raw)
        if found is None:
            return self.text(raw)
        wanted = self.value(found)
        masked = self._masked(raw, in_json=True)
        if masked == raw and wanted is found:
            return raw
        return masked if decode_object(masked) == wanted else msgspec.json.encode(wanted).decode()

    def _masked(self, text: str, *, in_json: bool) -> str:
        for rule in self.rules:
            if rule.card:
                text = _DIGITS.sub(self._redact_card_numbers, text)
            elif rule.user is not None:
                text = rule.user.replace(text, partial(self._replacement, rule.name))
            for pattern in rule.in_json if in_json else rule.decoded:
                text = self._substitute(rule, pattern, text)
        return text

    def _leaf(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10 ** (_LEAST_DIGITS - 1):
            text = str(value)
            masked = self.text(text)
            return value if masked == text else masked
        return value

    def _under_key(self, key: Any, member: Any) -> Any:
        """Give what stands in the place of a value under a key: the value itself, if the key is not a secret's."""
        if not isinstance(key, str) or member is None or isinstance(member, bool) or member == "":
            return member
        for rule in self.rules:
            if rule.keys is not None and rule.keys.search(key) is not None:
                text = member if isinstance(member, str) else _as_json(member)
                return member if text.startswith(_MARK) and text.endswith("]") else self._replacement(rule.name, text)
        return member

    def _replacement(self, name: str, secret: str) -> str:
        if not self._key:
            return f"{_MARK}{name}]"
        digest = blake2b(secret.encode("utf-8", "replace"), key=self._key, digest_size=6).hexdigest()
        return f"{_MARK}{name}#{digest}]"

    def _substitute(self, rule: _Rule, pattern: re.Pattern[str], text: str) -> str:
        groups = pattern.groupindex

        def replace(match: re.Match[str]) -> str:
            for group in ("double", "single", "escaped", "bare"):
                if group in groups and match[group] is not None:
                    break
            else:
                return self._replacement(rule.name, match[0]) if match[0] else ""
            secret = match[group]
            if not secret or (secret.startswith(_MARK) and "]" not in secret.removesuffix("]")):
                return match[0]
            begin, end = match.start(group) - match.start(), match.end(group) - match.start()
            return match[0][:begin] + self._replacement(rule.name, secret) + match[0][end:]

        return pattern.sub(replace, text)

    def _redact_card_numbers(self, match: re.Match[str]) -> str:
        """Mask the numbers in a run of digits and single separators, each of which begins and ends at one.

        A number may have neighbours, so every piece is tried, longest first: of each beginning the few that have as
        many digits as a number. Sums from the beginning of the run make each try a subtraction.
        """
        text = match[0]
        groups = _SEPARATORS.split(text)
        bounds = [0, *accumulate(map(len, groups))]
        digits = "".join(groups)
        if len(groups) == 1 and len(digits) not in _CARD_LENGTHS.get(digits[0], ()):
            return text
        is_bound = bytearray(len(digits) + 20)
        for bound in bounds:
            is_bound[bound] = 1
        values = list(map(int, digits))
        doubled = list(map(_DOUBLED.__getitem__, values))
        # Luhn sums, with the digits of even places doubled, and with those of odd places.
        even, odd = doubled.copy(), doubled
        even[1::2], odd[0::2] = values[1::2], values[0::2]
        sums = ([0, *accumulate(even)], [0, *accumulate(odd)])
        pieces: list[str] = []
        done = place = 0
        while place < len(groups):
            begin = bounds[place]
            for length in _CARD_LENGTHS.get(digits[begin], ()):
                end = begin + length
                if is_bound[end]:
                    sum_of = sums[end % 2]
                    if (sum_of[end] - sum_of[begin]) % 10 == 0 and _CARD.fullmatch(digits, begin, end):
                        # A separator stands before each group but the first.
                        pieces += text[done : begin + place], self._replacement("card", digits[begin:end])
                        place = bisect_left(bounds, end, place)
                        done = end + place - 1
                        break
            else:
                place += 1
        return "".join([*pieces, text[done:]])


def _may_hide(low: bytes) -> bool:
    """Tell whether lower-case bytes may hold a secret that cannot be seen in them: escaped, or with colours in it."""
    return b"\\u00" in low or b"\\/" in low or b"\x1b" in low


def _probe_of(rules: list[_Rule]) -> re.Pattern[str] | None:
    """Make one search that finds every text which one of the rules may match; none if every text may."""
    if any(not rule.card and not rule.needles for rule in rules):
        return None
    words = [re.escape(needle.decode()) for rule in rules for needle in rule.needles]
    if any(rule.card for rule in rules):
        words.append(rf"\d(?:[ -]?\d){{{_LEAST_DIGITS - 1}}}")
    return re.compile("|".join(words), re.IGNORECASE)


def _members(value: dict[Any, Any] | list[Any]) -> Iterator[tuple[Any, Any]]:
    return iter(value.items()) if isinstance(value, dict) else zip(repeat(None), value)


def _as_json(value: Any) -> str:
    try:
        return msgspec.json.encode(value).decode()
    except (RecursionError, UnicodeError):
        return repr(type(value))  # it is hidden whole; only equal hashes of equal secrets are lost


TRANSFORM = RedactTransform
