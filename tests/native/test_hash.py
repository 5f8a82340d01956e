"""XXH3 as `shipper/native/hash.c` has it, against the package `xxhash`, which has it from its author.

It has a form for each class of lengths: to 16 bytes (none here: no line of Docker's is that short), to 128, to 240, and
beyond. Long ones are taken in stripes of 64 bytes, and after 16 stripes the lanes are scrambled.
"""

from __future__ import annotations

import ctypes
import os
import random
import shlex
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest, xxh3_128_intdigest

from shipper import native

HASH = Path(native.__file__).with_name("hash.c")
COMPILER = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
HEADERS = sysconfig.get_path("include")
SHORTEST = 17
STRIPE, BLOCK = 64, 1024
#: Each length to behind the second block, and the neighbours of later ends of stripes and blocks.
LENGTHS = [
    *range(SHORTEST, 2 * BLOCK + STRIPE + 2),
    *(blocks * BLOCK + stripes * STRIPE + by for blocks in (3, 4, 16) for stripes in (0, 1, 15) for by in (-1, 0, 1)),
    1 << 20,
]
#: None, the least, the ends of signed and unsigned numbers of 64 bits; and that of a container, as they all are.
SEEDS = [0, 1, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1, xxh3_64_intdigest(b"c" * 64)]

Hashing = Callable[[bytes, int], int]


class _Number(ctypes.Structure):
    _fields_ = (("low", ctypes.c_uint64), ("high", ctypes.c_uint64))


@pytest.fixture(scope="session")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hashing]:
    """The functions of the C file, which no Python sees otherwise, as a library of their own."""
    if (shutil.which(COMPILER[0]) is None or not Path(HEADERS, "Python.h").exists()) and not os.environ.get("CI"):
        pytest.skip("needs a C compiler and the headers of Python")
    built = tmp_path_factory.mktemp("hash") / "hash.so"
    options = ["-O2", "-fPIC", "-shared", f"-I{HEADERS}", str(HASH), "-o", str(built)]
    subprocess.run([*COMPILER, *options], check=True, stdin=subprocess.DEVNULL)
    library = ctypes.CDLL(str(built))
    library.hash_of.restype = _Number
    library.hash_of.argtypes = (ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint64, ctypes.c_char_p)
    library.hash_secret.argtypes = (ctypes.c_char_p, ctypes.c_uint64)

    def hashed(data: bytes, seed: int) -> int:
        secret = ctypes.create_string_buffer(192)
        library.hash_secret(secret, seed)
        found = library.hash_of(data, len(data), seed, secret)
        return int(found.high << 64 | found.low)

    return hashed


@pytest.mark.parametrize("seed", SEEDS)
def test_every_length_has_the_hash_of_its_author(ours: Hashing, seed: int) -> None:
    data = random.Random(seed).randbytes(max(LENGTHS))
    wrong = [size for size in LENGTHS if ours(data[:size], seed) != xxh3_128_intdigest(data[:size], seed)]
    assert not wrong


@pytest.mark.parametrize("byte", [0, 255])
def test_bytes_that_are_all_the_same(ours: Hashing, byte: int) -> None:
    wrong = [size for size in LENGTHS if ours(bytes([byte]) * size, 7) != xxh3_128_intdigest(bytes([byte]) * size, 7)]
    assert not wrong


@settings(max_examples=500, deadline=None)
@given(st.binary(min_size=SHORTEST, max_size=5 * BLOCK), st.integers(0, 2**64 - 1))
def test_any_bytes_with_any_seed(ours: Hashing, data: bytes, seed: int) -> None:
    assert ours(data, seed) == xxh3_128_intdigest(data, seed)


# As lines get it

needs_compiled = pytest.mark.skipif(native.compiled is None, reason="needs the compiled form")
HEAD, TAIL = b'{"log":"', b'\\n","stream":"stdout","time":"2026-11-22T12:00:01Z"}\n'
LEAST = len(HEAD + TAIL)


def _lines(seed: int) -> Iterator[bytes]:
    """Lines of Docker's of every length that is tested, from the shortest that there is."""
    chance = random.Random(seed)
    for size in LENGTHS:
        if size >= LEAST:
            middle = bytes(chance.choices(range(0x23, 0x5C), k=size - LEAST))  # neither quote nor backslash
            yield HEAD + middle + TAIL


@needs_compiled
@pytest.mark.parametrize("seed", SEEDS)
def test_lines_have_the_hash_of_their_bytes_with_the_seed_of_their_container(seed: int) -> None:
    assert native.compiled is not None
    lines = list(_lines(seed))
    assert {len(line) for line in lines} == {size for size in LENGTHS if size >= LEAST}
    columns = native.compiled.docker_lines(b"".join(lines), 0, seed)
    assert columns[4] == [xxh3_128_intdigest(line, seed) for line in lines]


@needs_compiled
def test_no_line_is_shorter_than_what_has_a_hash() -> None:
    assert native.compiled is not None
    assert native.compiled.docker_lines(HEAD + TAIL, 0, 0) is not None
    for size in range(SHORTEST):
        for head in range(size + 1):
            line = (HEAD + TAIL)[:head] + (HEAD + TAIL)[len(HEAD + TAIL) - size + head :]
            assert native.compiled.docker_lines(line, 0, 0) is None
