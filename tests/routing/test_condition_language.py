"""What conditions mean, what they refuse, and that rows and columns agree."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shipper.errors import ConfigError
from shipper.reader import Term
from shipper.record import SEVERITIES, Batch, Resource
from shipper.routing.condition import compile_all, compile_condition

API = Resource(
    "docker",
    {
        "service.name": "api",
        "container.name": "faildaily-api-1",
        "container.id": "164051bb1523",
        "log.iostream": "stderr",
        "host.name": "web-1",
    },
)
WORKER = Resource("fallback", {"service.name": "worker", "log.file.path": "/logs/fallback.log"})


def batch_of(*rows: dict[str, Any]) -> Batch:
    count = len(rows)
    return Batch(
        times=list(range(count)),
        stamps=list(range(count)),
        hashes=list(range(count)),
        raws=[row.get("message", "") for row in rows],
        resources=[row.get("resource", API) for row in rows],
        offsets=list(range(count)),
        severities=[row.get("severity", 9) for row in rows],
        messages=[row.get("message", "") for row in rows],
        attributes=[row.get("attributes", {}) for row in rows],
    )


ROW = {
    "message": "connection refused: ECONN*REFUSED at db-1",
    "severity": 17,
    "attributes": {
        "user_id": 42,
        "status": 503,
        "path": "/API/users",
        "logger": "app.db",
        "ok": True,
        "empty": "",
        "nothing": None,
        "ratio": "0.5",
        "http.method": "GET",
        "http": {"status": {"code": 500}},
        "tags": ["a", "b"],
        "url": "http://x:80/?a=1",
    },
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", True),
        ("  ", True),
        ("*", True),
        ("refused", True),
        ("Refused", False),
        ('"connection refused"', True),
        ('"refused connection"', False),
        ("refused connection", True),
        ("refused AND connection", True),
        ("refused missing", False),
        ("missing OR refused", True),
        ("missing OR absent refused", False),
        ("(missing OR refused) connection", True),
        ("-missing", True),
        ("-refused", False),
        ("NOT refused", False),
        ("NOT (missing OR absent)", True),
        ("-(missing OR refused)", False),
        ("NOT NOT refused", True),
        ("db-1", True),
        ("ECONN*", True),
        ("ECONN*x", False),
        ("level:error", True),
        ("LEVEL:ERR", True),
        ("level:warn", False),
        ("level!=warn", True),
        ("level>=warn", True),
        ("level>error", False),
        ("level<=fatal", True),
        ("level<warning", False),
        ("level:warn..fatal", True),
        ("level:..warn", False),
        ("level:(warn error)", True),
        ("level:(warn, critical)", False),
        ("level:err*", True),
        ("level:/^e/", True),
        ("level:*", True),
        ("level<trace", False),
        ("service:api", True),
        ("service:ap", False),
        ("service:(worker api)", True),
        ("service:(worker OR api)", True),
        ("service:a*", True),
        ("host:web-1", True),
        ("-host:web-2", True),
        ("source:docker", True),
        ("stream:stderr", True),
        ("container:faildaily-*", True),
        ("container.name:faildaily-api-1", True),
        ("container.id:1640*", True),
        ("logger:app.*", True),
        ("id:*", True),
        ("user_id:42", True),
        ("user_id:042", False),
        ('user_id:"42"', True),
        ("user_id!=42", False),
        ("missing!=42", True),
        ("missing:*", False),
        ("-missing:*", True),
        ("empty:*", False),
        ('empty:""', True),
        ('user_id!=""', True),
        ("nothing:*", False),
        ("status:500..599", True),
        ("status:500..", True),
        ("status:..499", False),
        ("status>=503", True),
        ("status:>503", False),
        ("status<1e3", True),
        ("ratio<0.6", True),
        ("path<5", False),
        ("-path<5", True),
        ("ok:true", True),
        ("ok>0", False),
        ("path:/^.api/i", True),
        ("path:/^.api/", False),
        ("path:/API/users", True),
        (r"path:/API\/users$/", True),
        ("http.method:GET", True),
        ("http.status.code:500", True),
        ("http.status.missing:*", False),
        ('tags:"[\\"a\\",\\"b\\"]"', True),
        ("url:http://x:80/?a=1", True),
        ("message:connection*", True),
        ("message:connection", False),
        ("message:/ref.sed/", True),
        (r'"\u0065rror" OR "db\u002d1"', True),
    ],
)
def test_meaning(text: str, expected: bool) -> None:
    batch = batch_of(ROW)
    condition = compile_condition(text)
    assert condition.matches(next(batch.records())) is expected
    assert condition.indexes(batch) == ([0] if expected else [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("level:eror", "unknown level 'eror' (column 7); did you mean 'error'?"),
        ("a level>=xyz", "unknown level 'xyz' (column 10); levels are trace, debug, info, warn, error, fatal"),
        ("level:(warn eror)", "unknown level 'eror' (column 13); did you mean 'error'?"),
        ("level:warn..fatl", "unknown level 'fatl' (column 13); did you mean 'fatal'?"),
        ("status>abc", "'abc' is not a number (column 8); > compares numbers; status:abc compares text"),
        ("user_id=42", "'=' is not an operator (column 8); write user_id:42, or \"user_id=42\" to search for the text"),
        ("12:30", "'12' is not a field's name (column 1); quote it to search for the text: \"12:30\""),
        (
            ">3",
            "unexpected '>' (column 1); a field's name comes before it, or quote the text: \">3\"",
        ),
        ("user_id:", "a value is missing after user_id: (column 9); write user_id:* for any value"),
        ("user_id:()", "the list of values for user_id is empty (column 9)"),
        ("user_id:(1", "missing ')' (column 11); the '(' at column 9 is open"),
        ("(a b", "missing ')' (column 5); the '(' at column 1 is open"),
        ("a)", "unexpected ')' (column 2); there is no '(' it could close"),
        ("()", "empty parentheses (column 1)"),
        ("a OR", "OR needs a term on both sides (column 3)"),
        ("OR a", 'OR needs a term on both sides (column 1); write "OR" to search for the word'),
        ("a AND OR b", "AND needs a term on both sides (column 3)"),
        ("NOT", "NOT needs a term after it (column 1)"),
        ('"open', 'unterminated quote (column 1); a text ends with "; write \\" for a quote in it'),
        (r'"\q"', "bad escape in the quoted text (column 1); write \\\\ for a backslash; the rest is as in JSON"),
        ("f:/a(/", "bad regular expression (column 5); missing ), unterminated subpattern"),
        (
            "f:/a[b",
            "unterminated regular expression (column 3); it ends with / or /i; write \\/ for a slash in it",
        ),
        ("(" * 100, "more than 64 nested parentheses or negations (column 65)"),
    ],
)
def test_errors_name_the_column_and_what_to_write(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        compile_condition(text)
    assert str(raised.value) == message
    assert raised.value.problems == (message,)


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("level>=error service:api", [Term("level", "in", ("error", "fatal")), Term("service", "=", ("api",))]),
        ("user_id:(1 2) refused", [Term("user_id", "in", ("1", "2")), Term("message", "contains", ("refused",))]),
        ("status:500..599", [Term("status", ">=", ("500",)), Term("status", "<=", ("599",))]),
        ("action:log* x:/a/ y:/b/i z:*", [
            Term("action", "glob", ("log*",)), Term("x", "regex", ("a",)), Term("y", "iregex", ("b",)), Term("z", "exists"),
        ]),
        ("a OR b", []),
        ("-service:api", []),
        ("level<trace", []),
        ("(a OR b) -c level:warn", [Term("level", "=", ("warn",))]),
        ("", []),
    ],
)  # fmt: skip
def test_conjuncts_are_what_must_hold(text: str, terms: list[Term]) -> None:
    assert list(compile_condition(text).conjuncts()) == terms


def test_severity_zero_counts_as_info() -> None:
    batch = batch_of({"severity": 0}, {"severity": 9}, {"severity": 13})
    assert compile_condition("level:info").indexes(batch) == [0, 1]
    assert compile_condition("level<=info").indexes(batch) == [0, 1]


def test_unparsed_batch_is_searched_in_its_raw_lines() -> None:
    batch = batch_of({"message": "boom"}, {"message": "fine"})
    batch.severities = batch.messages = batch.attributes = None
    assert compile_condition("boom level:info").indexes(batch) == [0]
    assert compile_condition("level>info").indexes(batch) == []
    assert compile_condition("user_id:*").indexes(batch) == []


def test_compile_all_needs_every_text_and_ignores_empty_ones() -> None:
    batch = batch_of({"message": "a"}, {"message": "a b"}, {"message": "b"})
    assert compile_all(["", "a OR c", "b"]).indexes(batch) == [1]
    assert compile_all(["", ""]).indexes(batch) == [0, 1, 2]


def test_many_stars_do_not_explode() -> None:
    """A pattern that fails costs about as much as one that matches, however many stars it has."""
    batch = batch_of({"message": "a" * 20_000})
    assert compile_condition("message:" + "a*" * 20 + "b").indexes(batch) == []


values = st.sampled_from(["", "a", "b", "ab", "5", "7.5", "-1", "error", 5, 7.5, True, None, 2**70, ["a"], {"b": "5"}])
rows = st.fixed_dictionaries(
    {
        "message": st.text("ab ", max_size=4),
        "severity": st.sampled_from([0, *SEVERITIES.values(), 24]),
        "resource": st.sampled_from([API, WORKER]),
        "attributes": st.dictionaries(st.sampled_from(["x", "y", "y.b"]), values, max_size=3),
    }
)
terms = st.sampled_from(
    [
        "a", "b", '"a b"', "x:a", "x:*", 'x:""', "x!=a", "x>5", "x<=7.5", "x:a*", "x:/b$/", "x:/B/i", "x:(a 5)", "y.b:5",
        "x:(a* 5)", "y:1..9", "level>=warn", "level:info", "level!=error", "level:/r/", "service:api", "service:*", "id:0*",
        "stream:stderr", "log.file.path:*", "message:a*", "level<trace",
    ]
)  # fmt: skip
conditions = st.recursive(
    terms,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda pair: f"({pair[0]}) OR ({pair[1]})"),
        st.tuples(inner, inner).map(lambda pair: f"({pair[0]}) ({pair[1]})"),
        inner.map(lambda one: f"-({one})"),
        inner.map(lambda one: f"NOT ({one})"),
    ),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(text=conditions, table=st.lists(rows, max_size=6))
def test_columns_and_rows_agree(text: str, table: list[dict[str, Any]]) -> None:
    batch = batch_of(*table)
    condition = compile_condition(text)
    assert condition.indexes(batch) == [
        index for index, record in enumerate(batch.records()) if condition.matches(record)
    ]


@settings(max_examples=200, deadline=None)
@given(text=conditions, table=st.lists(rows, max_size=6))
def test_searching_for_conjuncts_only_widens(text: str, table: list[dict[str, Any]]) -> None:
    """A backend that looks for the simple terms alone finds every match."""
    batch = batch_of(*table)
    condition = compile_condition(text)
    written = {"=": ":{}", ">": ">{}", ">=": ">={}", "<": "<{}", "<=": "<={}", "glob": ":{}"}
    found = set(range(len(batch)))
    for term in condition.conjuncts():
        if term.op in written:
            found &= set(compile_condition(term.field + written[term.op].format(term.value)).indexes(batch))
        elif term.op == "in":
            found &= set(compile_condition(f"{term.field}:({' '.join(term.values)})").indexes(batch))
    assert set(condition.indexes(batch)) <= found


@settings(max_examples=300, deadline=None)
@given(st.text('ab:"()/*-.<>=! \\ORNTD', max_size=12))
def test_any_text_compiles_or_is_refused_with_one_text(text: str) -> None:
    refused: ConfigError | None = None
    try:
        compile_condition(text).indexes(batch_of(ROW))
    except ConfigError as error:
        refused = error
    assert refused is None or (len(refused.problems) == 1 and "column" in str(refused))
