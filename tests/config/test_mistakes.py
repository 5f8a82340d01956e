"""Every mistake a config can hold, and the exact text that tells it."""

from __future__ import annotations

import pytest

from shipper import registry
from shipper.config.loader import loads
from shipper.errors import ConfigError

#: What was done wrong, the file, the texts.
#: Every built-in sink, and those of the plugin that these tests install.
KNOWN = ", ".join(sorted([*registry.names(registry.SINKS, plugins=False), "hollow", "needy", "vault"]))

MISTAKES = (
    (
        "a sink in the daemon's own state",
        "sources: {tape: {type: tape}}\nsinks:\n  logs: {type: sqlite, path: /state/../state/state.db}\nstate_dir: /state\n",
        (
            "E-CFG-VALUE shipper.yaml:3:30 sinks.logs.path: /state/../state/state.db is the daemon's own state; choose another file",
        ),
    ),
    (
        "empty file",
        "",
        ("E-CFG-MISSING shipper.yaml:1:1 the file is empty; it needs at least one source and one sink",),
    ),
    (
        "only a comment",
        "# nothing\n",
        ("E-CFG-MISSING shipper.yaml:1:1 the file is empty; it needs at least one source and one sink",),
    ),
    (
        "a list",
        "- a\n",
        (
            "E-CFG-TYPE shipper.yaml:1:1 expected a mapping with the keys sources, sinks, active, routes, transforms, state_dir, http, log, shutdown_timeout",
        ),
    ),
    (
        "a word",
        "hello\n",
        (
            "E-CFG-TYPE shipper.yaml:1:1 expected a mapping with the keys sources, sinks, active, routes, transforms, state_dir, http, log, shutdown_timeout",
        ),
    ),
    (
        "no sources",
        "sinks: {vault: {type: vault, host: a}}\n",
        ("E-CFG-MISSING shipper.yaml:1:1 sources: at least one is needed, such as docker: {type: docker}",),
    ),
    (
        "no sinks",
        "sources: {tape: {type: tape}}\n",
        ("E-CFG-MISSING shipper.yaml:1:1 sinks: at least one is needed, such as archive: {type: sqlite}",),
    ),
    (
        "empty sinks",
        "sources: {tape: {type: tape}}\nsinks: {}\n",
        ("E-CFG-MISSING shipper.yaml:2:1 sinks: at least one is needed, such as archive: {type: sqlite}",),
    ),
    (
        "unknown root key",
        "sources: {tape: {type: tape}}\nsinks: {vault: {type: vault, host: a}}\nsink: 1\n",
        ("E-CFG-KEY shipper.yaml:3:1 unknown key 'sink'; did you mean 'sinks'?",),
    ),
    (
        "unknown root key without a neighbour",
        "sources: {tape: {type: tape}}\nsinks: {vault: {type: vault, host: a}}\nzzz: 1\n",
        (
            "E-CFG-KEY shipper.yaml:3:1 unknown key 'zzz'; known keys: sources, sinks, active, routes, transforms, state_dir, http, log, shutdown_timeout",
        ),
    ),
    (
        "duplicate root key",
        "sources: {tape: {type: tape}}\nsinks: {vault: {type: vault, host: a}}\nsinks: {}\n",
        ("E-CFG-DUP shipper.yaml:3:1 key 'sinks' is here twice; the first is in line 2",),
    ),
    (
        "duplicate key in a section",
        "sources: {tape: {type: tape}}\nsinks:\n  vault: {type: vault, host: a, port: 1, port: 2}\n",
        ("E-CFG-DUP shipper.yaml:3:42 key 'port' is here twice; the first is in line 3",),
    ),
    (
        "tab",
        "sources:\n\tdocker: {type: tape}\n",
        (
            "E-CFG-YAML shipper.yaml:2:1 not valid YAML: while scanning for the next token: found character that cannot start any token; indent with spaces, not tabs, and quote values that begin with % @ or `",
        ),
    ),
    (
        "unclosed bracket",
        "sources: {tape: {type: tape}\nsinks: 1\n",
        (
            "E-CFG-YAML shipper.yaml:2:1 not valid YAML: while parsing a flow mapping: did not find expected ',' or '}'; check indentation, brackets and quotes just before this place",
        ),
    ),
    (
        "unquoted colon",
        "sources: a: b\n",
        (
            "E-CFG-YAML shipper.yaml:1:11 not valid YAML: mapping values are not allowed in this context; quote values that contain ': ', and check the indentation",
        ),
    ),
    (
        "two documents",
        "sources: {tape: {type: tape}}\nsinks: {vault: {type: vault, host: a}}\n---\na: 1\n",
        (
            "E-CFG-YAML shipper.yaml:3:1 not valid YAML: expected a single document in the stream: but found another document; one file holds one document; remove the '---' between them",
        ),
    ),
    (
        "custom tag",
        "sources: {tape: {type: tape}}\nsinks:\n  vault: {type: vault, host: a, user: !env HOME}\n",
        ("E-CFG-YAML shipper.yaml:3:39 unknown YAML tag; put values that begin with ! in quotes",),
    ),
    (
        "anchor that contains itself",
        "sources: &a {tape: *a}\nsinks: {vault: {type: vault, host: a}}\n",
        (
            "E-CFG-YAML shipper.yaml:1:10 this YAML anchor contains itself; remove the alias inside it",
            "E-CFG-TYPE shipper.yaml:1:10 sources.tape: expected a mapping with a type, such as {type: name}, got nothing",
        ),
    ),
    (
        "unknown alias",
        "sources: *nothing\n",
        (
            "E-CFG-YAML shipper.yaml:1:10 not valid YAML: found undefined alias; check indentation, brackets and quotes just before this place",
        ),
    ),
    (
        "a list as key",
        "sources: {tape: {type: tape}}\nsinks: {vault: {type: vault, host: a}}\n? [a, b]\n: 1\n",
        ("E-CFG-YAML shipper.yaml:3:3 a key must be a single word, not a list or a mapping",),
    ),
    (
        "sinks as list",
        "sources: {tape: {type: tape}}\nsinks: [vault]\n",
        ("E-CFG-TYPE shipper.yaml:2:8 sinks: expected a mapping of names to sinks, got a list",),
    ),
    (
        "sink as word",
        "sources: {tape: {type: tape}}\nsinks: {vault: vault}\n",
        (
            "E-CFG-TYPE shipper.yaml:2:16 sinks.vault: expected a mapping with a type, such as {type: name}, got 'vault'",
        ),
    ),
    (
        "section name",
        "sources: {tape: {type: tape}}\nsinks: {a/b: {type: vault, host: a}}\n",
        (
            "E-CFG-VALUE shipper.yaml:2:9 sinks: 'a/b' cannot be a name; use letters, digits, - and _, at most 63, such as 'logs_db'",
        ),
    ),
    (
        "type missing",
        "sources: {tape: {type: tape}}\nsinks: {vault: {host: a}}\n",
        (f"E-CFG-MISSING shipper.yaml:2:16 sinks.vault: key 'type' is missing; known types: {KNOWN}",),
    ),
    (
        "type a number",
        "sources: {tape: {type: tape}}\nsinks: {vault: {type: 3}}\n",
        (f"E-CFG-TYPE shipper.yaml:2:23 sinks.vault: type: expected text, got the number 3; known types: {KNOWN}",),
    ),
    (
        "unknown type",
        "sources: {tape: {type: tape}}\nsinks: {vault: {type: vaul, host: a}}\n",
        ("E-CFG-PLUGIN shipper.yaml:2:23 sinks.vault: unknown sink type 'vaul'; did you mean 'vault'?",),
    ),
    (
        "type with a path",
        "sources: {tape: {type: tape}}\nsinks: {vault: {type: ../vault}}\n",
        (
            "E-CFG-PLUGIN shipper.yaml:2:23 sinks.vault: '../vault' cannot be a sink type: small letters, digits and _ only, such as 'file'",
        ),
    ),
    (
        "missing package",
        "sources: {tape: {type: tape}}\nsinks: {needy: {type: needy}}\n",
        (
            "E-CFG-PLUGIN shipper.yaml:2:23 sinks.needy: sink type 'needy' needs the package 'an_sdk_that_nobody_has', which is not installed: pip install 'an_sdk_that_nobody_has'",
        ),
    ),
    (
        "plugin without a class",
        "sources: {tape: {type: tape}}\nsinks: {hollow: {type: hollow}}\n",
        (
            "E-CFG-PLUGIN shipper.yaml:2:24 sinks.hollow: sink type 'hollow': shipper_hollow_plugin does not say SINK = a class derived from shipper.sink.Sink; this is a fault of that sink, not of the config",
        ),
    ),
    (
        "unknown key with a neighbour",
        "sources: {tape: {type: tape}}\nsinks:\n  vault: {type: vault, host: a, pasword_file: x}\n",
        ("E-CFG-KEY shipper.yaml:3:33 sinks.vault: unknown key 'pasword_file'; did you mean 'password_file'?",),
    ),
    (
        "unknown key in a nested section",
        "sources: {tape: {type: tape}}\nsinks:\n  vault: {type: vault, host: a, tls: {verfy: true}}\n",
        ("E-CFG-KEY shipper.yaml:3:39 sinks.vault.tls: unknown key 'verfy'; did you mean 'verify'?",),
    ),
    (
        "missing key",
        "sources: {tape: {type: tape}}\nsinks:\n  vault: {type: vault}\n",
        ("E-CFG-MISSING shipper.yaml:3:10 sinks.vault: key 'host' is missing (The server's name)",),
    ),
    (
        "word for a whole number",
        "sources: {tape: {type: tape}}\nsinks:\n  vault: {type: vault, host: a, port: abc}\n",
        (
            "E-CFG-TYPE shipper.yaml:3:39 sinks.vault.port: expected a whole number from 1 to 65535, such as 3306, got 'abc'",
        ),
    ),
    (
        "fraction for a whole number",
        "sources: {tape: {type: tape}}\nsinks:\n  vault: {type: vault, host: a, port: 1.5}\n",
        (
            "E-CFG-TYPE shipper.yaml:3:39 sinks.vault.port: expected a whole number from 1 to 65535, such as 3306, got the number 1.5",
        ),
    ),
    (
        "number out of bounds",
        "sources: {tape: {type: tape}}\nsinks:\n  vault: {type: vault, host: a, port: 70000}\n",
        (
            "E-CFG-TYPE shipper.yaml:3:39 sinks.vault.port: expected a whole number from 1 to 65535, such as 3306, got the number 70000",
        ),
    ),
    (
        "word for a number",
        "sources: {tape: {type: tape}}\nsinks:\n  vault: {type: vault, host: a, ratio: half}\n",
        ("E-CFG-TYPE shipper.yaml:3:40 sinks.vault.ratio: expected a number, such as 0.5, got 'half'",),
    ),
    (
        "yes for true",
        "sources: {tape: {type: tape}}\nsinks:\n  vault: {type: vault, host: a, tls: {verify: yes}}\n",
        ("E-CFG-TYPE shipper.yaml:3:47 sinks.vault.tls.verify: expected true or false, got 'yes'",),
    ),
    (
        "number for text",
        "sources: {tape: {type: tape}}\nsinks:\n  vault: {type: vault, host: a, user: 42}\n",
        (
            "E-CFG-TYPE shipper.yaml:3:39 sinks.vault.user: expected text of length at least 1, such as shipper, got the number 42; put it in quotes",
        ),
    ),
    (
        "true for text",
        "sources: {tape: {type: tape}}\nsinks:\n  vault: {type: vault, host: a, user: true}\n",
        (
            "E-CFG-TYPE shipper.yaml:3:39 sinks.vault.user: expected text of length at least 1, such as shipper, got true; put it in quotes",
        ),
    ),
    (
        "nothing for text",
        "sources: {tape: {type: tape}}\nsinks:\n  vault: {type: vault, host: a, user: }\n",
        (
            "E-CFG-TYPE shipper.yaml:3:39 sinks.vault.user: expected text of length at least 1, such as shipper, got nothing",
        ),
    ),
    (
        "empty text",
        "sources: {tape: {type: tape}}\nsinks:\n  vault: {type: vault, host: a, user: ''}\n",
        ("E-CFG-TYPE shipper.yaml:3:39 sinks.vault.user: expected text of length at least 1, such as shipper, got ''",),
    ),
    (
        "list for text",
        "sources: {tape: {type: tape}}\nsinks:\n  vault: {type: vault, host: a, user: [a]}\n",
        (
            "E-CFG-TYPE shipper.yaml:3:39 sinks.vault.user: expected text of length at least 1, such as shipper, got a list",
        ),
    ),
    (
        "word for a list",
        "sources: {tape: {type: tape}}\nsinks:\n  vault: {type: vault, host: a, tables: logs}\n",
        ("E-CFG-TYPE shipper.yaml:3:41 sinks.vault.tables: expected a list of text, got 'logs'",),
    ),
    (
        "number in a list",
        "sources: {tape: {type: tape}}\nsinks:\n  vault: {type: vault, host: a, tables: [logs, 3]}\n",
        ("E-CFG-TYPE shipper.yaml:3:48 sinks.vault.tables[1]: expected text, got the number 3; put it in quotes",),
    ),
    (
        "number in a mapping",
        "sources: {tape: {type: tape}}\nsinks:\n  vault: {type: vault, host: a, labels: {a: 1}}\n",
        ("E-CFG-TYPE shipper.yaml:3:45 sinks.vault.labels.a: expected text, got the number 1; put it in quotes",),
    ),
    (
        "word for a mapping",
        "sources: {tape: {type: tape}}\nsinks:\n  vault: {type: vault, host: a, tls: true}\n",
        ("E-CFG-TYPE shipper.yaml:3:38 sinks.vault.tls: expected a mapping, got true",),
    ),
    (
        "not a duration",
        "sources: {tape: {type: tape}}\nsinks:\n  vault: {type: vault, host: a, timeout: soon}\n",
        ("E-CFG-TYPE shipper.yaml:3:42 sinks.vault.timeout: expected a duration, such as 30s, got 'soon'",),
    ),
    (
        "choice",
        "sources: {tape: {type: tape}}\nsinks:\n  vault: {type: vault, host: a, mode: saef}\n",
        (
            "E-CFG-TYPE shipper.yaml:3:39 sinks.vault.mode: expected one of fast, safe, got 'saef'; did you mean 'safe'?",
        ),
    ),
    (
        "buffer size",
        "sources: {tape: {type: tape}}\nsinks:\n  vault: {type: vault, host: a, buffer: {max_size: lots}}\n",
        ("E-CFG-TYPE shipper.yaml:3:52 sinks.vault.buffer.max_size: expected a size, such as 1GiB, got 'lots'",),
    ),
    (
        "buffer choice",
        "sources: {tape: {type: tape}}\nsinks:\n  vault: {type: vault, host: a, buffer: {when_full: drop}}\n",
        ("E-CFG-TYPE shipper.yaml:3:53 sinks.vault.buffer.when_full: expected one of block, drop_oldest, got 'drop'",),
    ),
    (
        "refused by the section itself",
        "sources: {tape: {type: tape}}\nsinks:\n  vault: {type: vault, host: a, user: root, password: hunter22}\n",
        ("E-CFG-VALUE shipper.yaml:3:10 sinks.vault: user root with password *** is too mighty; make one of its own",),
    ),
    (
        "secret too long",
        "sources: {tape: {type: tape}}\nsinks:\n  vault: {type: vault, host: a, password: s3crets3crets3crets3crets3crets3crets3crets3crets3crets3cret}\n",
        ("E-CFG-TYPE shipper.yaml:3:43 sinks.vault.password: expected text of length at most 40, got ***",),
    ),
    (
        "secret a number",
        "sources: {tape: {type: tape}}\nsinks:\n  vault: {type: vault, host: a, password: 12345678}\n",
        (
            "E-CFG-TYPE shipper.yaml:3:43 sinks.vault.password: expected text of length at most 40, got ***; put it in quotes",
        ),
    ),
    (
        "secret given twice",
        "sources: {tape: {type: tape}}\nsinks:\n  vault: {type: vault, host: a, password: abc, password_file: shipper.yaml}\n",
        ("E-CFG-SECRET shipper.yaml:3:63 sinks.vault: give password or password_file, not both",),
    ),
    (
        "secret file missing",
        "sources: {tape: {type: tape}}\nsinks:\n  vault: {type: vault, host: a, password_file: /nonexistent/password}\n",
        (
            "E-CFG-SECRET shipper.yaml:3:48 sinks.vault.password_file: cannot read /nonexistent/password (No such file or directory); create it",
        ),
    ),
    (
        "variable not set",
        "sources: {tape: {type: tape}}\nsinks:\n  vault: {type: vault, host: a, user: '${NOT_SET}'}\n",
        (
            "E-CFG-ENV shipper.yaml:3:39 environment variable NOT_SET is not set; set it or give a default: ${NOT_SET:-value}",
        ),
    ),
    (
        "variable with a message",
        "sources: {tape: {type: tape}}\nsinks:\n  vault: {type: vault, host: a, user: '${NOT_SET:?say who you are}'}\n",
        ("E-CFG-ENV shipper.yaml:3:39 environment variable NOT_SET is not set: say who you are",),
    ),
    (
        "variable unclosed",
        "sources: {tape: {type: tape}}\nsinks:\n  vault: {type: vault, host: a, user: '${NOT_SET'}\n",
        ("E-CFG-ENV shipper.yaml:3:39 '${' without its '}'; write $${ for the characters themselves",),
    ),
    (
        "variable with another operator",
        "sources: {tape: {type: tape}}\nsinks:\n  vault: {type: vault, host: a, user: '${NOT_SET-x}'}\n",
        (
            "E-CFG-ENV shipper.yaml:3:39 cannot read this '${...}'; write ${VAR}, ${VAR:-default} or ${VAR:?message}, and $${ for the characters themselves",
        ),
    ),
    (
        "variable of the wrong type",
        "sources: {tape: {type: tape}}\nsinks:\n  vault: {type: vault, host: a, port: '${TOKEN}'}\n",
        (
            "E-CFG-TYPE shipper.yaml:3:39 sinks.vault.port: expected a whole number from 1 to 65535, such as 3306, got what '${TOKEN}' stands for",
        ),
    ),
    (
        "active unknown",
        "sources: {tape: {type: tape}}\nsinks: {vault: {type: vault, host: a}}\nactive: valt\n",
        ("E-CFG-REF shipper.yaml:3:9 active: there is no sink 'valt'; did you mean 'vault'?",),
    ),
    (
        "active empty",
        "sources: {tape: {type: tape}}\nsinks: {vault: {type: vault, host: a}}\nactive: []\n",
        ("E-CFG-REF shipper.yaml:3:9 active: the list is empty; name at least one sink",),
    ),
    (
        "active twice",
        "sources: {tape: {type: tape}}\nsinks: {vault: {type: vault, host: a}}\nactive: [vault, vault]\n",
        ("E-CFG-REF shipper.yaml:3:17 active: sink 'vault' is named twice; remove one",),
    ),
    (
        "active a number",
        "sources: {tape: {type: tape}}\nsinks: {vault: {type: vault, host: a}}\nactive: 3\n",
        (
            "E-CFG-TYPE shipper.yaml:3:9 active: expected the name of a sink or a list of names, such as vault, got the number 3",
        ),
    ),
    (
        "active missing",
        "sources: {tape: {type: tape}}\nsinks:\n  a: {type: vault, host: a}\n  b: {type: vault, host: b}\n",
        ("E-CFG-MISSING shipper.yaml:1:1 active: say which of the sinks a, b gets the records, such as active: a",),
    ),
    (
        "routes a mapping",
        "sources: {tape: {type: tape}}\nsinks: {vault: {type: vault, host: a}}\nroutes: {match: a, to: vault}\n",
        (
            "E-CFG-TYPE shipper.yaml:3:9 routes: expected a list of routes, such as [{match: 'level>=error', to: mysql}], got a mapping",
        ),
    ),
    (
        "route to nowhere",
        "sources: {tape: {type: tape}}\nsinks: {vault: {type: vault, host: a}}\nroutes:\n  - {match: 'level>=error', to: loki}\n",
        ("E-CFG-REF shipper.yaml:4:33 routes[0].to: there is no sink 'loki'; known sinks: vault",),
    ),
    (
        "route without match",
        "sources: {tape: {type: tape}}\nsinks: {vault: {type: vault, host: a}}\nroutes:\n  - {to: vault}\n",
        (
            "E-CFG-MISSING shipper.yaml:4:5 routes[0]: key 'match' is missing (The condition, such as level>=error service:api)",
        ),
    ),
    (
        "route to a number",
        "sources: {tape: {type: tape}}\nsinks: {vault: {type: vault, host: a}}\nroutes:\n  - {match: 'level>=error', to: 3}\n",
        (
            "E-CFG-TYPE shipper.yaml:4:33 routes[0].to: expected text or a list of text, got the number 3; put it in quotes",
        ),
    ),
    (
        "route with a wrong level",
        "sources: {tape: {type: tape}}\nsinks: {vault: {type: vault, host: a}}\nroutes:\n  - {match: 'level>=eror', to: vault}\n",
        ("E-CFG-MATCH shipper.yaml:4:13 routes[0].match: unknown level 'eror' (column 8); did you mean 'error'?",),
    ),
    (
        "transform refused",
        "sources: {tape: {type: tape}}\nsinks: {vault: {type: vault, host: a}}\ntransforms: {mask: {type: scrub, rules: [phone]}}\n",
        ("E-CFG-VALUE shipper.yaml:3:20 transforms.mask: unknown rule 'phone'; rules: email",),
    ),
    (
        "transforms as list",
        "sources: {tape: {type: tape}}\nsinks: {vault: {type: vault, host: a}}\ntransforms: [scrub]\n",
        ("E-CFG-TYPE shipper.yaml:3:13 transforms: expected a mapping of names to transforms, got a list",),
    ),
    (
        "http port",
        "sources: {tape: {type: tape}}\nsinks: {vault: {type: vault, host: a}}\nhttp: {listen: '127.0.0.1:99999'}\n",
        ("E-CFG-VALUE shipper.yaml:3:7 http: listen: there is no port 99999; the highest is 65535",),
    ),
    (
        "http without port",
        "sources: {tape: {type: tape}}\nsinks: {vault: {type: vault, host: a}}\nhttp: {listen: localhost}\n",
        (
            "E-CFG-TYPE shipper.yaml:3:16 http.listen: expected text that matches ^\\S*:[0-9]{1,5}$, such as 127.0.0.1:8687, got 'localhost'",
        ),
    ),
    (
        "log level",
        "sources: {tape: {type: tape}}\nsinks: {vault: {type: vault, host: a}}\nlog: {level: warning}\n",
        (
            "E-CFG-TYPE shipper.yaml:3:14 log.level: expected one of debug, info, warn, error, got 'warning'; did you mean 'warn'?",
        ),
    ),
    (
        "log as word",
        "sources: {tape: {type: tape}}\nsinks: {vault: {type: vault, host: a}}\nlog: info\n",
        ("E-CFG-TYPE shipper.yaml:3:6 log: expected a mapping of keys to values, got 'info'",),
    ),
    (
        "shutdown timeout",
        "sources: {tape: {type: tape}}\nsinks: {vault: {type: vault, host: a}}\nshutdown_timeout: never\n",
        ("E-CFG-TYPE shipper.yaml:3:19 shutdown_timeout: expected a duration, such as 30s, got 'never'",),
    ),
    (
        "negative shutdown timeout",
        "sources: {tape: {type: tape}}\nsinks: {vault: {type: vault, host: a}}\nshutdown_timeout: -1\n",
        ("E-CFG-TYPE shipper.yaml:3:19 shutdown_timeout: expected a duration, such as 30s, got the number -1",),
    ),
    (
        "state dir",
        "sources: {tape: {type: tape}}\nsinks: {vault: {type: vault, host: a}}\nstate_dir: 3\n",
        ("E-CFG-TYPE shipper.yaml:3:12 state_dir: expected a path, such as /var/lib/shipper, got the number 3",),
    ),
)


@pytest.mark.parametrize(("text", "problems"), [pytest.param(*case[1:], id=case[0]) for case in MISTAKES])
def test_a_mistake_is_told_with_its_place_and_what_to_do(text: str, problems: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        loads(text, {"TOKEN": "hunter22"})
    assert caught.value.problems == problems


def test_all_mistakes_of_a_file_are_told_at_once_in_its_order() -> None:
    """The order is that of the lines, whatever order the checks ran in."""
    text = (
        "log: {level: eror}\n"
        "active: nowhere\n"
        "sinks:\n"
        "  vault: {type: vault, port: x, hst: a}\n"
        "  other: {type: none_such}\n"
        "sources: {tape: {type: tape, y: 1}}\n"
        "extra: 1\n"
    )
    with pytest.raises(ConfigError) as caught:
        loads(text, {})
    places = [problem.split()[1] for problem in caught.value.problems]
    assert places == [
        "shipper.yaml:1:14",
        "shipper.yaml:2:9",
        "shipper.yaml:4:10",
        "shipper.yaml:4:30",
        "shipper.yaml:4:33",
        "shipper.yaml:5:17",
        "shipper.yaml:6:30",
        "shipper.yaml:7:1",
    ]
