#!/bin/sh
# Compile shipper for other Pythons than the one that all tests run with, and hold the compiled forms to their twins there:
# what a Python declares to its extensions is all that differs much from one to the next.
#
#   tests/pythons.sh PYTHON VERSION ...    PYTHON is the one that all tests run with
set -eu
runs=$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
shift
for version; do
    [ "$version" != "$runs" ] || continue
    environment=.venv/python$version
    if ! sh tests/setup.sh python "$version" "$environment"; then
        # A machine of one's own may not get it. In CI that would hide a fault.
        [ "${CI:-}" != true ] || exit 1
        echo "tests/native is not run with Python $version: the lines above say why" >&2
        continue
    fi
    echo "tests/native with Python $version"
    "$environment/bin/python" -m pytest -q -p no:cacheprovider tests/native
done
