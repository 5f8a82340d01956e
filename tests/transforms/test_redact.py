"""No secret is left in message, attributes or raw line, and nothing else is touched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shipper.errors import ConfigError
from shipper.parse import Parser
from shipper.record import Batch, Resource
from shipper.routing import pattern
from shipper.transforms.redact import TRANSFORM, RedactConfig, RedactRule, RedactTransform

ALL: list[str | RedactRule] = ["password", "bearer_token", "jwt", "email", "card", "aws_key"]
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc"
SAMPLE = f"password=hunter2 email=jane.doe@example.org card=4111 1111 1111 1111 token={JWT}"


def redact(*lines: str, rules: list[str | RedactRule] = ALL, **options: str) -> Batch:
    count = len(lines)
    batch = Batch([1] * count, [1] * count, [0] * count, list(lines), [Resource("t", {})] * count, [0] * count)
    Parser().parse(batch)
    return RedactTransform(RedactConfig(type="redact", rules=rules, **options)).apply(batch)


def everything(batch: Batch) -> str:
    return repr((batch.raws, batch.messages, batch.attributes))


def test_the_sample_line_keeps_no_secret() -> None:
    batch = redact(SAMPLE)
    masked = "password=[redacted:password] email=[redacted:email] card=[redacted:card] token=[redacted:bearer_token]"
    assert (batch.raws, batch.messages) == ([masked], [masked])


@pytest.mark.parametrize(
    "line",
    [
        json.dumps({"message": SAMPLE}),
        json.dumps({"message": "x", "body": json.dumps({"line": SAMPLE, "password": 'hunter2"jane'})}),
        json.dumps({"message": "line\n" + SAMPLE.replace("password", "\npassword")}),
        json.dumps({"message": "m", "password": "hunter2", "user": {"email": "jane.doe@example.org"}}),
        json.dumps({"message": "m", "password": ["hunter2", {"x": "hunter2"}], "card": 4111111111111111}),
        json.dumps({"message": "m", "db": {"dbPassword": 'a"hunter2\\'}, "jane.doe@example.org": 1}),
        '{"message":"mail jane.doe\\u0040example.org","p\\u0061ssword":"hunter2"}',
        '{"message":"password=\\u0068unter2"}',
        "\x1b[31mpass\x1b[0mword=hunter2 jane.doe\x1b[1m@example.org",
        f"level=info msg=login password=hunter2 token={JWT}",
        "mysql://app:hunter2@db/x and {password: 'hunter2', k: 1}",
        '1.1.1.1 - - [22/Nov/2026:10:00:00 +0000] "GET /?password=hunter2&a=jane.doe@example.org HTTP/1.1" 200 1 "-" "x"',
    ],
)
def test_no_form_of_a_line_keeps_a_secret(line: str) -> None:
    text = everything(redact(line))
    for secret in ("hunter2", "jane.doe", "example.org", "4111", "eyJ", "\\u0068unter2"):
        assert secret not in text, text
    if line.startswith("{"):
        assert isinstance(json.loads(redact(line).raws[0]), dict)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Authorization: Bearer abc.def-123456", "Authorization: Bearer [redacted:bearer_token]"),
        ("key AKIAIOSFODNN7EXAMPLE used", "key [redacted:aws_key] used"),
        ("paid 4111-1111-1111-1111, id 12", "paid [redacted:card], id 12"),
        ("12 4111 1111 1111 1111 34", "12 [redacted:card] 34"),
        ("password: hunter2, next", "password: [redacted:password], next"),
        ("password=a\\b c", "password=[redacted:password] c"),
    ],
)
def test_only_the_secret_is_replaced(text: str, expected: str) -> None:
    assert redact(text).raws == [expected]
    assert redact(expected).raws == [expected]


@pytest.mark.parametrize(
    "text",
    [
        "order 4111111111111112 of 1795380443868",
        "the token bucket is full, max_tokens=5 passes",
        "a @ b, not@host, x@",
        '{"a" : 1.50,  "max_tokens":5,"t":1795380443868}',
        "eyJ is no token",
        "password is wrong",
    ],
)
def test_what_is_no_secret_is_untouched(text: str) -> None:
    batch = redact(text)
    assert batch.raws == [text]


def test_a_hash_is_salted_short_and_the_same_for_the_same_secret(tmp_path: Path) -> None:
    salt = tmp_path / "salt"
    salt.write_text("s3\n")
    first = redact("mail a@b.org and a@b.org", mode="hash", salt="s3").raws[0]
    left, right = first.removeprefix("mail ").split(" and ")
    assert left == right
    assert left.startswith("[redacted:email#")
    assert redact("mail a@b.org and a@b.org", mode="hash", salt_file=str(salt)).raws == [first]
    assert redact("mail a@b.org and a@b.org", mode="hash", salt="other").raws != [first]


def test_an_own_rule_masks_its_match() -> None:
    batch = redact("order ORD-123 ok", "clean", rules=[RedactRule("order", r"ORD-\d+")])
    assert batch.raws == ["order [redacted:order] ok", "clean"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rules": ["emial"]}, "no redact rule is called 'emial'; use password, bearer_token"),
        ({"rules": [RedactRule("x", "(")]}, "the pattern of redact rule 'x' is no regular expression"),
        ({"rules": ["email"], "mode": "hash"}, "mode hash needs a salt"),
        ({"rules": ["email"], "mode": "hash", "salt_file": "/nowhere/salt"}, "cannot read salt_file /nowhere/salt"),
    ],
)
def test_a_bad_config_says_what_is_wrong(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        TRANSFORM(RedactConfig(type="redact", **options))


def test_shared_attributes_are_copied_not_changed() -> None:
    batch = Batch([1], [1], [0], ["x a@b.org"], [Resource("t", {})], [0], severities=[9], messages=["m"])
    shared: dict[str, Any] = {"to": {"mail": "a@b.org"}}
    batch.attributes = [shared]
    RedactTransform(RedactConfig(type="redact", rules=["email"])).apply(batch)
    assert shared == {"to": {"mail": "a@b.org"}}
    assert batch.attributes == [{"to": {"mail": "[redacted:email]"}}]


secrets = st.sampled_from(["hunter2secret", "s3cr3t/with+chars", "pä55wörd"])
around = st.text(st.characters(blacklist_categories=["Cs"]), max_size=20)


@settings(max_examples=200, deadline=None)
@given(secrets, around, around, st.booleans())
def test_a_password_never_survives_in_json_whatever_stands_around_it(
    secret: str, before: str, after: str, ascii_only: bool
) -> None:
    inner = json.dumps({"password": secret, "note": after}, ensure_ascii=ascii_only)
    line = json.dumps(
        {"message": f"{before} password={secret} {after}", "api_key": secret, "body": inner, "x": [before]},
        ensure_ascii=ascii_only,
    )
    batch = redact(line)
    assert secret not in everything(batch)
    assert secret not in json.dumps(json.loads(batch.raws[0]), ensure_ascii=False)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(st.characters(blacklist_characters="@:=0123456789", blacklist_categories=["Cs"])), max_size=5))
def test_text_that_no_rule_can_match_is_never_touched(texts: list[str]) -> None:
    texts = [text for text in texts if "bearer" not in text.lower() and "eyj" not in text.lower()]
    assert redact(*texts).raws == texts


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_redacting_twice_is_redacting_once(text: str) -> None:
    transform = RedactTransform(RedactConfig(type="redact", rules=ALL))
    once = transform.text(f"password={text} a@b.org")
    assert transform.text(once) == once


@pytest.mark.parametrize("depth", [63, 64, 65, 500, 970, 985, 100_000])
def test_a_line_nested_deep_is_masked(depth: int) -> None:
    line = '{"level":"info","message":"m","n":' + "[" * depth + '"jane.doe\\u0040example.org"' + "]" * depth + "}"
    batch = redact(line)
    assert "jane.doe" not in "".join(batch.raws)
    assert batch.messages is not None
    assert "jane.doe" not in batch.messages[0]
    assert batch.attributes is not None
    assert "jane.doe" not in json.dumps(batch.attributes)
    assert "[redacted:email]" in json.dumps(batch.attributes)
    assert "[redacted:email]" in batch.raws[0]
    assert (batch.severities, batch.messages) == ([9], ["m"])


def test_a_value_of_any_depth_is_masked() -> None:
    transform = RedactTransform(RedactConfig(type="redact", rules=ALL))
    value: Any = "jane.doe@example.org"
    for _ in range(50_000):
        value = {"n": [value]}
    found = transform.value(value)
    for _ in range(50_000):
        (found,) = found["n"]
    assert found == "[redacted:email]"


def test_the_order_of_members_and_what_holds_no_secret_stay() -> None:
    transform = RedactTransform(RedactConfig(type="redact", rules=ALL))
    clean = {"a": [1, {"b": None}], "c": {"d": True}, "e": "x"}
    assert transform.value(clean) is clean
    mixed = {"a": {"password": {"x": 1}}, "b": "y", "c": ["jane.doe@example.org", 2], "jane.doe@example.org": {"z": []}}
    assert list(transform.value(mixed).items()) == [
        ("a", {"password": "[redacted:password]"}), ("b", "y"), ("c", ["[redacted:email]", 2]),
        ("[redacted:email]", {"z": []}),
    ]  # fmt: skip


def test_a_login_behind_escaped_slashes_is_seen() -> None:
    """No word of the rule stands in the line as it was written."""
    batch = redact('{"message":"m","url":"mysql:\\/\\/app:hunter2@db\\/x"}', rules=["password"])
    assert "hunter2" not in everything(batch)


@pytest.mark.parametrize("quote", ['"', "'", '\\"', '\\\\\\"'])
def test_a_secret_that_was_cut_off_is_masked_to_the_end(quote: str) -> None:
    batch = redact(f"before password={quote}hunter2 and hunter2", rules=["password"])
    assert batch.raws == [f"before password={quote}[redacted:password]"]


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("1 4111111111111111 2", "1 [redacted:card] 2"),
        ("12 4111 1111 1111 1111 34", "12 [redacted:card] 34"),
        ("4111-1111-1111-1111 5500-0055-5555-5559", "[redacted:card] [redacted:card]"),
        ("9 4111 1111 1111 1111 4111111111111111 9", "9 [redacted:card] [redacted:card] 9"),
        ("4111 1111 1111 1112", "4111 1111 1111 1112"),
        ("94111111111111111", "94111111111111111"),
        ("3782 822463 10005", "[redacted:card]"),
        ("4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1", "[redacted:card]"),
        ("2024-01-02 2024-01-03", "2024-01-02 2024-01-03"),
    ],
)
def test_cards_among_other_digits(text: str, masked: str) -> None:
    assert redact(text, rules=["card"]).raws == [masked]


def test_seventeen_thousand_cards_in_a_line() -> None:
    line = "4111111111111111 " * 17_000
    assert redact(line, rules=["card"]).raws == ["[redacted:card] " * 17_000]


def test_a_rule_of_the_users_without_re2_lets_nothing_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pattern, "linear_engine", lambda: None)
    line = "hunter2 " + "x" * pattern.LIMIT + " hunter2"
    for text in (line, json.dumps({"message": line, "n": [line]})):
        assert "hunter2" not in everything(redact(text, rules=[RedactRule("mine", "hunter2")]))
