"""Redact: take secrets out of message, attributes and raw line.

A row is looked at only if a cheap search says that a rule may match it. In the raw line of a JSON record a secret may
be written with escapes, an at sign as a code point, say; therefore a raw JSON line is decoded again after masking, and
when a secret is still in it, or masking broke its JSON, it is written anew from the masked object. Lines that no rule
matches are never touched, not even in their spacing.

``mask`` writes ``[redacted:email]``; ``hash`` writes ``[redacted:email#<12 hex digits>]``, the same for the same
secret and salt, so that records can still be told to belong together.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from shipper.errors import ConfigError
from shipper.parse.levels import ANSI
from shipper.record import Batch
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
    r'(?:"(?P<double>(?:[^"\\]|\\.)*)"'
    r"|'(?P<single>(?:[^'\\]|\\.)*)'"
    r'|(?P<escapes>\\+)"(?P<escaped>.*?)(?<!\\)(?P=escapes)"'
)
_BARE_IN_JSON: Final = r"|(?P<bare>[^\s\"'&\\{\[]?[^\s\"'&\\]*[^\s\"'&\\,;)}\]]))"
_BARE: Final = r"|(?P<bare>(?!\\+\")[^\s\"'&{\[]?[^\s\"'&]*[^\s\"'&,;)}\]]))"
_SCHEME: Final = r"(?:(?:bearer|basic|digest|token)\s+)?"
_SEPARATOR: Final = r"(?:\\*[\"'])?\s{0,4}(?:=>|[:=])\s{0,4}"

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
_TO_ZERO: Final = bytes(48 if 48 <= byte <= 57 else byte for byte in range(256))

_decode = msgspec.json.Decoder(dict[str, Any]).decode


class RedactRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A rule of the user's own."""

    name: Annotated[str, Meta(description="Stands in the mask: [redacted:NAME].", pattern=r"^[A-Za-z0-9_.-]+$")]
    pattern: Annotated[str, Meta(description="A regular expression of Python; the whole match is masked.")]


class RedactConfig(TransformConfig, frozen=True, kw_only=True):
    """Takes secrets out of message, attributes and raw line."""

    rules: Annotated[
        list[str | RedactRule],
        Meta(description="Any of password, bearer_token, jwt, email, card, aws_key, or {name, pattern}.", min_length=1),
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
    """One rule: patterns for decoded text and for raw JSON, words that a matching row must hold, and secret keys."""

    def __init__(
        self,
        name: str,
        patterns: list[str],
        *,
        needles: tuple[bytes, ...] = (),
        keys: str = "",
        card: bool = False,
    ) -> None:
        self.name = name
        self.needles = needles
        self.card = card
        self.keys = re.compile(rf"(?:{keys})$", re.IGNORECASE) if keys else None
        decoded, in_json = list(patterns), list(patterns)
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
            return b"0" * 13 in text.translate(_TO_ZERO, b" -")
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
                re.compile(rule.pattern)
            except re.error as error:
                problems.append(f"the pattern of redact rule {rule.name!r} is no regular expression: {error}")
                continue
            self._rules.append(_Rule(rule.name, [rule.pattern]))
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

    def apply(self, batch: Batch) -> Batch:
        """Mask secrets of all rows. Rows without one keep their very objects."""
        raws = batch.raws
        joined = "\n".join(raws).encode("utf-8", "replace").lower()
        odd = b"\\u00" in joined or b"\x1b" in joined
        rules = [rule for rule in self._rules if rule.may_match(joined)]
        if not rules and not odd:
            return batch
        raws = batch.raws = list(raws)
        messages = batch.messages = None if batch.messages is None else list(batch.messages)
        attributes = batch.attributes = None if batch.attributes is None else list(batch.attributes)
        for i, raw in enumerate(raws):
            low = raw.encode("utf-8", "replace").lower()
            if (odd and (b"\\u00" in low or b"\x1b" in low)) or any(rule.may_match(low) for rule in rules):
                raws[i] = self.raw(raw)
                if messages is not None:
                    messages[i] = self.text(messages[i])
                if attributes is not None:
                    attributes[i] = self.value(attributes[i])
        return batch

    def text(self, text: str) -> str:
        """Mask a decoded text."""
        for rule in self._rules:
            if rule.card:
                text = _DIGITS.sub(self._redact_card_numbers, text)
            for pattern in rule.decoded:
                text = self._substitute(rule, pattern, text)
        return text

    def value(self, value: Any) -> Any:
        """Mask an attribute's value, strings at any depth; under a secret key whatever is there is masked whole."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            made = {self._redact_key(key): self._redact_member(key, member) for key, member in value.items()}
            return value if made == value else made
        if isinstance(value, list):
            return [self.value(member) for member in value]
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**12:
            text = str(value)
            masked = self.text(text)
            return value if masked == text else masked
        return value

    def raw(self, raw: str) -> str:
        """Mask a raw line."""
        if "\x1b" in raw:
            # Colours may stand inside a secret or its key: judge the bare text, and let the colours go with a secret.
            bare = ANSI.sub("", raw)
            if bare != raw:
                masked = self.raw(bare)
                return raw if masked == bare else masked
        start = raw.lstrip()
        if start[:1] != "{" or raw.rstrip()[-1:] != "}":
            return self.text(raw)
        try:
            wanted = self.value(_decode(raw))
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            return self.text(raw)
        masked = raw
        for rule in self._rules:
            if rule.card:
                masked = _DIGITS.sub(self._redact_card_numbers, masked)
            for pattern in rule.in_json:
                masked = self._substitute(rule, pattern, masked)
        try:
            if _decode(masked) == wanted:
                return masked
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            pass
        return msgspec.json.encode(wanted).decode()

    def _redact_member(self, key: Any, member: Any) -> Any:
        if isinstance(key, str) and member is not None and not isinstance(member, bool) and member != "":
            for rule in self._rules:
                if rule.keys is not None and rule.keys.search(key) is not None:
                    text = member if isinstance(member, str) else msgspec.json.encode(member).decode()
                    return (
                        member if text.startswith(_MARK) and text.endswith("]") else self._replacement(rule.name, text)
                    )
        return self.value(member)

    def _redact_key(self, key: Any) -> Any:
        # A map keyed by e-mail addresses holds them too.
        return self.text(key) if isinstance(key, str) else key

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
        text = match[0]
        # A card may have neighbours in its run of digits: try every piece that begins and ends at a separator.
        starts = [0, *(at + 1 for at, char in enumerate(text) if char in " -")]
        ends = [*(at for at, char in enumerate(text) if char in " -"), len(text)]
        for start in starts:
            for end in reversed(ends):
                digits = text[start:end].replace(" ", "").replace("-", "")
                if _CARD.fullmatch(digits) and _luhn(digits):
                    rest = _DIGITS.sub(self._redact_card_numbers, text[end:]) if end < len(text) else ""
                    return text[:start] + self._replacement("card", digits) + rest
        return text


def _luhn(digits: str) -> bool:
    total = 0
    for place, char in enumerate(reversed(digits)):
        number = int(char) * (1 + place % 2)
        total += number - 9 if number > 9 else number
    return total % 10 == 0


TRANSFORM = RedactTransform
