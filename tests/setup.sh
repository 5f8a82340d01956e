#!/bin/sh
# Prepare this machine. Installs nothing that is there already; as another user than root it only says what to do.
#
#   tests/setup.sh              the servers that tests start themselves: MariaDB, a Docker engine, a static busybox,
#                               systemd's containers, the Debian tree that such containers run, and docker compose
#   tests/setup.sh tree         that tree alone
#   tests/setup.sh venv DIR     a virtual environment with the first Python 3.11 or later that is found
#   tests/setup.sh compiler PYTHON
#                               a C compiler and the headers of that Python, for the compiled form of shipper; where they
#                               cannot be had, nothing fails
#   tests/setup.sh python VERSION DIR
#                               a virtual environment with Python VERSION, as 3.14, and what tests/native needs; a Python
#                               that this machine lacks is taken out of Debian's packages, and nothing is installed
set -eu

has() { command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ]; }

# Services must not start by themselves: the tests start their own, on free ports and in temporary directories.
install_packages() {
    if [ "$(id -u)" -ne 0 ] || ! has apt-get; then
        echo "missing on this machine: $*" >&2
        echo "install these packages (Debian's names), for instance: sudo apt-get install -y --no-install-recommends $*" >&2
        return 1
    fi
    echo "installing $*"
    log=$(mktemp)
    # Only what comes over the network is ever cut short (patience): an installation is not.
    # shellcheck disable=SC2086 # a command with its argument, or nothing
    if ! { ${patience:-} apt-get update && ${patience:-} apt-get install -y --download-only --no-install-recommends "$@" &&
        DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y --no-install-recommends "$@"; \
    } </dev/null >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        rm -f "$log"
        echo "could not install $*: the lines above are apt-get's own" >&2
        return 1
    fi
    rm -f "$log"
}

find_python() {
    for name in python3.14 python3.13 python3.12 python3.11 python3; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    return 1
}

make_venv() {
    if ! python=$(find_python); then
        install_packages python3 python3-venv
        python=$(find_python) || { echo "shipper needs Python 3.11 or later; none was found" >&2; return 1; }
    fi
    # Debian keeps what venv needs in a package of its own.
    "$python" -c 'import ensurepip' 2>/dev/null || install_packages python3-venv
    "$python" -m venv "$1"
}

compiles() { echo '#include <Python.h>' | ${CC:-$2} -fsyntax-only -I "$1" -x c - >/dev/null 2>&1; }

make_compiler() {
    case ${SHIPPER_PURE:-0} in 0) ;; *) return ;; esac
    # Its compiler, its headers, its version, and whether it is the distribution's: another brings its headers along.
    told=$("$1" -c 'import sys, sysconfig
print(sysconfig.get_path("include"), (sysconfig.get_config_var("CC") or "cc").split()[0],
      "python%d.%d" % sys.version_info[:2], sys.base_prefix)')
    read -r headers compiler python prefix <<END
$told
END
    if compiles "$headers" "$compiler"; then return; fi
    missing="gcc libc6-dev"
    [ "$prefix" != /usr ] || missing="$missing $python-dev"
    # It is not needed enough to be waited for: `make demo` ends within a minute.
    patience="timeout 25"
    # shellcheck disable=SC2086 # a list of package names
    if install_packages $missing && compiles "$headers" "$compiler"; then return; fi
    echo "going on without: shipper is built in its pure Python form, which does the same and is slower" >&2
}

# Sets `other` to apt's options for the packages of another Debian, which has what this one lacks. All of it is kept in a
# directory, whose path is absolute and without spaces.
#   other_debian DIRECTORY SUITE
other_debian() {
    work=$1 suite=$2
    codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
    mkdir -p "$work/lists/partial" "$work/sources" "$work/archives/partial"
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
        [ ! -f "$file" ] || sed "s/$codename/$suite/g" "$file" >"$work/sources/${file##*/}"
    done
    : >"$work/status"
    other="-o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts=$work/sources -o Dir::State::lists=$work/lists
        -o Dir::State::status=$work/status -o Dir::Cache::archives=$work/archives -o Dir::Cache::pkgcache=
        -o Dir::Cache::srcpkgcache= -o APT::Sandbox::User=root"
}

# A Python of a later Debian, in a directory of its own. Its C library is newer than this machine's, so it is started by the
# loader that belongs to it, under the name that it was called by: it finds its virtual environment by that.
make_private_python() (
    version=$1 root=$2
    case $version in 3.11) suite=bookworm ;; 3.13) suite=trixie ;; *) suite=forky ;; esac
    if [ "$(id -u)" -ne 0 ] || ! has apt-get; then
        echo "there is no python$version here; as root on Debian, $0 gets one" >&2
        return 1
    fi
    echo "getting Python $version"
    mkdir -p "${root%/*}"
    work=$(mktemp -d)
    new=$(mktemp -d "$root.XXXXXX")
    trap 'rm -rf "$work" "$new"' EXIT
    trap 'exit 1' HUP INT TERM
    cd "$work"
    other_debian "$work" "$suite"
    # Its headers alone, without those of the C library that they would bring: this machine's compiler has its own.
    # shellcheck disable=SC2086 # options
    if ! { apt-get $other update && apt-get $other download "libpython$version-dev" &&
        apt-get $other install -y --download-only --no-install-recommends "python$version-venv"; } </dev/null >log 2>&1; then
        tail -n 20 log >&2
        echo "could not get Python $version: the lines above are apt-get's own" >&2
        return 1
    fi
    for package in *.deb archives/*.deb; do dpkg -x "$package" "$new"; done
    loader=$(cd "$new" && ls -d lib/*/ld-linux*.so.* usr/lib/*/ld-linux*.so.* 2>/dev/null | head -n 1)
    machine=$(basename "${loader%/*}")
    cat >"$new/usr/bin/python" <<END
#!/bin/sh
exec $root/$loader --argv0 "\$0" --library-path $root/lib/$machine:$root/usr/lib/$machine $root/usr/bin/python$version "\$@"
END
    # Its headers name a file of theirs by that path from /usr/include.
    ln -s "../$machine" "$new/usr/include/python$version/$machine"
    chmod 755 "$new" "$new/usr/bin/python"
    rm -rf "$root"
    mv -T "$new" "$root"
)

make_python() {
    version=$1 directory=$2 python=$2/bin/python
    if "python$version" -c 'import ensurepip' 2>/dev/null; then
        "python$version" -m venv --clear "$directory"
        set -- "$python" -m pip
    else
        root=/var/cache/shipper-tests/python$version
        "$root/usr/bin/python" -c 'import ensurepip' 2>/dev/null || make_private_python "$version" "$root" || return 1
        # Debian's own would look for pip in /usr, where this machine's is.
        "$root/usr/bin/python" -m venv --clear --without-pip "$directory"
        set -- "$python" "$(ls "$root"/usr/share/python-wheels/pip-*.whl)/pip"
    fi
    make_compiler "$python"
    # With all that shipper needs, it would be minutes: not every library has built wheels for the newest Python.
    set -- "$@" install --quiet --disable-pip-version-check --root-user-action ignore
    "$@" hypothesis msgspec pymysql pytest pytest-randomly pytest-timeout xxhash &&
        SHIPPER_REQUIRE_COMPILED=1 "$@" --no-deps --editable .
}

# The Debian that tests boot, run commands in, or make an image of. They never write into it: each lays an overlay over
# it. Its file .packages is the last thing that is made: a tree without it, or with another list, is made anew.
tree=/var/cache/shipper-tests/debian-bookworm
tree_packages=systemd,systemd-sysv,dbus,python3,python3-venv,procps

make_tree() {
    [ "$(cat "$tree/.packages" 2>/dev/null)" = "$tree_packages" ] && return
    if [ "$(id -u)" -ne 0 ]; then
        echo "no Debian tree in $tree: the tests that need one are skipped; as root, $0 makes it" >&2
        return
    fi
    echo "making a Debian tree in $tree: a minute"
    mkdir -p "${tree%/*}"
    new=$(mktemp -d "$tree.XXXXXX")
    # What debootstrap has mounted there, if it was interrupted, is not ours to delete.
    trap 'rm -rf --one-file-system "$new" "$new.log"' EXIT
    trap 'exit 1' HUP INT TERM
    if ! debootstrap --variant=minbase --include="$tree_packages" bookworm "$new" </dev/null >"$new.log" 2>&1; then
        tail -n 20 "$new.log" >&2
        echo "could not make $tree: the lines above are debootstrap's own" >&2
        return 1
    fi
    rm -rf "$new"/var/cache/apt/* "$new"/var/lib/apt/lists/*
    chmod 755 "$new" # mktemp gave it to root alone
    echo "$tree_packages" >"$new/.packages"
    # A rename over a directory that is not empty fails: the old one, if any, steps aside first.
    [ ! -e "$tree" ] || mv -T "$tree" "$new.old"
    mv -T "$new" "$tree"
    rm -rf "$new.old"
}

# The program of `docker compose`, which tests call by itself. Bookworm has its first version only, that does not know the
# specification, so the next release's is taken out of its package, and nothing is installed.
compose=/var/cache/shipper-tests/docker-compose

make_compose() (
    if docker compose version >/dev/null 2>&1 || [ -x "$compose" ]; then return; fi
    if [ "$(id -u)" -ne 0 ] || ! has apt-get; then
        echo "docker compose is not installed: its tests are skipped; as root on Debian, $0 gets it" >&2
        return
    fi
    echo "getting docker compose"
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    cd "$work"
    other_debian "$work" trixie
    # shellcheck disable=SC2086 # options
    if ! { apt-get $other update && apt-get $other download docker-compose && dpkg -x docker-compose_*.deb files; } \
        </dev/null >log 2>&1; then
        tail -n 20 log >&2
        echo "could not get docker compose: the lines above are apt-get's own" >&2
        return 1
    fi
    mkdir -p "${compose%/*}"
    mv files/usr/libexec/docker/cli-plugins/docker-compose "$compose"
)

if [ "${1:-}" = tree ]; then
    make_tree
    exit
fi

if [ "${1:-}" = venv ]; then
    make_venv "$2"
    exit
fi

if [ "${1:-}" = compiler ]; then
    make_compiler "$2"
    exit
fi

if [ "${1:-}" = python ]; then
    make_python "$2" "$3"
    exit
fi

missing=""
# The -core packages hold the programs alone: no service, no system-wide database.
if ! has mariadbd || ! has mariadb-install-db; then missing="$missing mariadb-server-core mariadb-client-core"; fi
if ! has dockerd || ! has docker; then missing="$missing docker.io iptables"; fi
if ! has busybox || ldd "$(command -v busybox)" >/dev/null 2>&1; then missing="$missing busybox-static"; fi
if ! has systemd-nspawn; then missing="$missing systemd-container"; fi
if ! has debootstrap; then missing="$missing debootstrap debian-archive-keyring"; fi
# A machine of one's own may lack them: then their tests are skipped with a reason. In CI that would hide a fault.
# shellcheck disable=SC2086 # a list of package names
{ [ -z "$missing" ] || install_packages $missing; } && sh "$0" tree && make_compose || [ "${CI:-}" != true ]
