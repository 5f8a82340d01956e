"""Regular expressions of the user's: the same meaning with RE2 and without, and no text that holds anything up."""

from __future__ import annotations

import time

import pytest

from shipper.errors import ConfigError
from shipper.routing import pattern as module
from shipper.routing.condition import compile_condition
from shipper.routing.pattern import LIMIT, Pattern, PatternError, linear_engine

needs_re2 = pytest.mark.skipif(linear_engine() is None, reason="google-re2 is not installed")


@pytest.fixture(params=["re2", "re"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "re":
        monkeypatch.setattr(module, "linear_engine", lambda: None)
    elif linear_engine() is None:
        pytest.skip("google-re2 is not installed")
    return str(request.param)


@pytest.mark.parametrize(
    ("source", "found", "not_found"),
    [
        (r"^.api", "/api", "x/api"),
        (r"refused$", "was refused", "refused!"),
        (r"a{2,3}b", "xaab", "ab"),
        (r"(?P<code>[45]\d\d) ", "got 503 now", "got 203 now"),
        (r"[\]a-c]+-[^x]", "]b-y", "]b-x"),
        (r"(?i:error)|fatal", "ERROR", "FATAL"),
        (r"(?s)a.b", "a\nb", "ab"),
        (r"größe", "die größe", "die grosse"),
        (r"\bid=\w+", "id=x1", "grid=x1"),
        (r"\d", "5", "\N{ARABIC-INDIC DIGIT FIVE}"),
        (r"\x41", "A", "a"),
    ],
)
def test_both_engines_find_the_same(engine: str, source: str, found: str, not_found: str) -> None:
    assert Pattern(source).search(found)
    assert not Pattern(source).search(not_found)


def test_case_is_left_out_of_account_when_asked(engine: str) -> None:
    assert Pattern("größe [a-f]", ignore_case=True).search("GRÖßE B")
    assert not Pattern("größe").search("GRÖßE")


def test_replacing(engine: str) -> None:
    text = "née 12 and \ud800 345 ü"
    assert Pattern(r"\d+|ü|x*").replace(text, lambda found: f"<{found}>") == "née <12> and \ud800 <345> <ü>"
    assert Pattern("zzz").replace(text, str.upper) == text


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a(?=b)", "lookahead"), ("a(?!b)", "lookahead"), ("(?<=a)b", "lookbehind"), ("(?<!a)b", "lookbehind"),
        (r"(a)\1", "a backreference"), ("(?P<x>a)(?P=x)", "a backreference"), ("(a)?(?(1)b)", "a condition"),
        ("(?>a)", "an atomic group"), ("a++", "a possessive quantifier"), ("a{2}+", "a possessive quantifier"),
        ("a{,3}", "a repeat without its least"), ("a{2000}", "more than 1000 repeats"), (r"a\Z", r"there is no \\Z"),
        ("(?x) a", "the flags x"), ("[[:alpha:]]", "a class by name"), (r"[\1]", "a backreference"),
        (r"\u00e9", r"there is no \\u"), ("(", "missing"), ("(" * 5000 + ")" * 5000, "."), ("a**", "multiple repeat"),
    ],
)  # fmt: skip
def test_what_only_one_engine_knows_is_refused_by_both(engine: str, source: str, message: str) -> None:
    with pytest.raises(PatternError, match=message):
        Pattern(source)


def test_a_condition_says_where(engine: str) -> None:
    with pytest.raises(ConfigError, match=r"bad regular expression \(column 9\); lookahead is not supported"):
        compile_condition("path:/ab(?=c)/")


@needs_re2
@pytest.mark.parametrize("source", [r"(a|aa)+$", r"(\w+\s?)+[A-F]$", r"(.*)*x", "(a?){30}a{30}b"])
def test_re2_takes_linear_time(source: str) -> None:
    text = "aaaaaaaa" * (1 << 17) + "!"
    start = time.thread_time()
    assert not Pattern(source).search(text)
    Pattern(source).replace(text, str.upper)
    assert time.thread_time() - start < 5


def test_without_re2_only_the_beginning_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "linear_engine", lambda: None)
    pattern = Pattern("hunter2")
    assert not pattern.linear
    assert pattern.search("." * (LIMIT - 7) + "hunter2")
    assert not pattern.search("." * (LIMIT - 6) + "hunter2")
    masked = pattern.replace("hunter2" + "." * LIMIT + "hunter2", lambda _: "[masked]")
    assert "hunter2" not in masked
    assert masked == "[masked]" + "." * (LIMIT - 7) + "[masked]"


@needs_re2
def test_with_re2_all_of_it_is() -> None:
    assert Pattern("hunter2").linear
    assert Pattern("hunter2").search("." * (1 << 20) + "hunter2")


@pytest.mark.parametrize(
    ("condition", "text", "matches"),
    [
        ("message:*", "x", True), ("message:a*", "ab", True), ("message:a*a", "a", False), ("message:a*a", "aa", True),
        ("message:*b*", "abc", True), ("message:a*b*c", "aXbYc", True), ("message:ab*bc", "abc", False),
        ("message:*ab*ab", "ab", False), ("message:*ab*ab", "abab", True), ("message:a**c", "abc", True),
        ("message:a.*", "ab", False), ("message:*x", "x\ny", False), ("message:x*y", "x\ny", True),
    ],
)  # fmt: skip
def test_globs(condition: str, text: str, matches: bool) -> None:
    from shipper.record import Batch, Resource

    batch = Batch([1], [1], [1], [text], [Resource("s", {})], [0])
    assert compile_condition(condition).indexes(batch) == ([0] if matches else [])
