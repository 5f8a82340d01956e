#!/bin/sh
# What `make install` and `make uninstall` do. Nothing is started, stopped or enabled: docs/how-to/systemd.md says how.
#
#   systemd/install.sh install      the program with its packages, the service, an example of a configuration
#   systemd/install.sh uninstall    all of that again, but for what was changed or added since; never the state
#
# From the environment: PREFIX (/usr/local), DESTDIR (what stands before every path while a package is built),
# UNITDIR (where systemd looks), PYTHON (python3), EXTRAS (mysql; as in pip install shipper[...]).
set -eu

source=$(cd "$(dirname "$0")/.." && pwd)
prefix=${PREFIX:-/usr/local}
prefix=/$(printf '%s' "$prefix" | sed 's,^/*,,; s,/*$,,')
dest=${DESTDIR:+$(mkdir -p "$DESTDIR" && cd "$DESTDIR" && pwd)}
dest=${dest%/}
python=${PYTHON:-python3}
extras=${EXTRAS-mysql}
case $prefix in
    /usr | /usr/local) units=${UNITDIR:-$prefix/lib/systemd/system} ;;
    *) units=${UNITDIR:-/etc/systemd/system} ;; # systemd looks into no other prefix
esac

program=$prefix/lib/shipper
share=$prefix/share/shipper
config=/etc/shipper

fail() {
    echo "systemd/install.sh: $*" >&2
    exit 1
}

install_program() {
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
        fail "$python is not Python 3.11 or later; name one: make install PYTHON=python3.12"
    "$python" -c 'import ensurepip' 2>/dev/null ||
        fail "$python cannot make virtual environments; Debian's package python3-venv has what it lacks"
    # Made beside its place and moved there when it is whole: an upgrade that fails leaves what was there.
    new=$dest$program.new
    rm -rf "$new"
    trap 'rm -rf "$new"' EXIT
    trap 'exit 1' HUP INT TERM
    install -d "${new%/*}"
    "$python" -m venv "$new"
    "$new/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile "$source${extras:+[$extras]}"
    # pip keeps to itself what a build says of its form.
    "$new/bin/python" -m shipper --version
    # The place where it was made stands in the first line of its scripts.
    grep -rlIF "$new" "$new/bin" "$new/pyvenv.cfg" | while read -r file; do
        [ -h "$file" ] || sed -i "s|$new|$program|g" "$file"
    done
    # The service cannot write there: what is not compiled now is compiled at every start.
    "$new/bin/python" -m compileall -q -s "$new" -p "$program" "$new/lib"
    chmod -R go+rX "$new"
    rm -rf "$dest$program.old"
    [ ! -e "$dest$program" ] || mv -T "$dest$program" "$dest$program.old"
    mv -T "$new" "$dest$program"
    rm -rf "$dest$program.old"
    install -d "$dest$prefix/bin"
    ln -sfn ../lib/shipper/bin/shipper "$dest$prefix/bin/shipper"
}

install_files() {
    install -d "$dest$units" "$dest$share" "$dest$config"
    sed "s|/usr/local/bin/|$prefix/bin/|" "$source/systemd/shipper.service" >"$dest$units/shipper.service"
    chmod 644 "$dest$units/shipper.service"
    install -m 644 "$source/systemd/docker-files.conf" "$source/config/shipper.yaml" "$dest$share"
    [ -d "$dest$config/credentials" ] || install -d -m 700 "$dest$config/credentials"
    [ -e "$dest$config/shipper.yaml" ] || install -m 644 "$source/config/shipper.yaml" "$dest$config/shipper.yaml"
}

uninstall() {
    # A configuration that nobody changed is ours.
    if cmp -s "$dest$share/shipper.yaml" "$dest$config/shipper.yaml"; then rm "$dest$config/shipper.yaml"; fi
    rm -rf "$dest$program" "$dest$share"
    rm -f "$dest$units/shipper.service"
    if [ "$(readlink "$dest$prefix/bin/shipper" 2>/dev/null)" = ../lib/shipper/bin/shipper ]; then
        rm "$dest$prefix/bin/shipper"
    fi
    # Directories that hold nothing else now. What every system has stays, empty or not.
    set -- "$config/credentials" "$config"
    case $prefix in
        /usr) ;;
        /usr/local) set -- "$@" "$units" "${units%/*}" ;;
        *) set -- "$@" "$prefix/share" "$prefix/lib" "$prefix/bin" "$prefix" ;;
    esac
    for directory; do
        rmdir "$dest$directory" 2>/dev/null || true
    done
    [ ! -e "$dest$config" ] || echo "left as it is: $dest$config"
}

case ${1:-} in
    install)
        install_program
        install_files
        ;;
    uninstall) uninstall ;;
    *) fail "say install or uninstall" ;;
esac
