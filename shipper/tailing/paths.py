"""What may stand under a path: which links are followed, and names that can be written down.

Whoever may write into a directory of logs can put a symbolic link there, to a file that only the daemon may read. So a
link is followed when root or the daemon's own user made it, or when its owner owns what it points to as well: then he
could have copied it. Kubernetes' links under /var/log/containers leave their directory, but they are root's.
"""

# Path objects cost more than the calls they wrap, every second for each of many files.
# ruff: noqa: PTH100, PTH115, PTH118

from __future__ import annotations

import errno
import os
import stat

#: As many links as Linux follows in one path.
_MOST_LINKS = 40
_PATH_ONLY = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class NotFollowedError(PermissionError):
    """A symbolic link that is not followed, because its owner may not read what it points to."""

    def __init__(self, link: str, owner: int, target: int) -> None:
        super().__init__(
            errno.EPERM,
            f"symbolic link is not followed: it is user id {owner}'s, what it points to is user id {target}'s",
            link,
        )
        self.fix = f"if you trust it: chown -h {os.geteuid()} '{printable(link)}', or set follow_symlinks: always for this source"


def followed(path: str, user: int | None = None) -> os.stat_result:
    """Give the status of what a path leads to. Raises OSError, `NotFollowedError` for a link that is not followed.

    ``user`` is the id of the daemon's user, if it is not this process's. Every step is held open while the next one is taken, so nobody can put another link in between.
    """
    status = _without_links(path)
    if status is not None:
        return status
    trusted = {0, os.geteuid() if user is None else user}
    steps = _steps(os.path.abspath(path))
    #: Links whose targets are being walked to: path, owner, and how many steps are left once the target is reached.
    links: list[tuple[str, int, int]] = []
    followed_links = 0
    here, at = os.open("/", _PATH_ONLY), "/"
    try:
        status = os.fstat(here)
        while steps:
            name = steps.pop()
            there = os.open(name, _PATH_ONLY, dir_fd=here)
            status = os.fstat(there)
            if stat.S_ISLNK(status.st_mode):
                followed_links += 1
                try:
                    target = os.readlink("", dir_fd=there)
                finally:
                    os.close(there)
                if followed_links > _MOST_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                if status.st_uid not in trusted:
                    links.append((os.path.join(at, name), status.st_uid, len(steps)))
                if target.startswith("/"):
                    os.close(here)
                    here, at = os.open("/", _PATH_ONLY), "/"
                status = os.fstat(here)
                steps.extend(_steps(target))
            else:
                os.close(here)
                here, at = there, os.path.normpath(os.path.join(at, name))
            while links and len(steps) <= links[-1][2]:
                link, owner, _ = links.pop()
                if status.st_uid != owner:
                    raise NotFollowedError(link, owner, status.st_uid)
    finally:
        os.close(here)
    return status


def _without_links(path: str) -> os.stat_result | None:
    """Give the status of what stands under a path if no link is on the way: the usual case, in a quarter of the time."""
    here = os.open(path, _PATH_ONLY)
    try:
        status = os.fstat(here)
        return status if not stat.S_ISLNK(status.st_mode) and os.readlink(f"/proc/self/fd/{here}") == path else None
    except OSError:
        return None
    finally:
        os.close(here)


def _steps(path: str) -> list[str]:
    """Give the names on a path, the first one last."""
    return [name for name in reversed(path.split("/")) if name not in {"", "."}]


def regular(status: os.stat_result, path: str) -> os.stat_result:
    """Give a status back. Raises OSError unless it is that of a regular file."""
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, f"{kind(status.st_mode)}, not a regular file", path)
    return status


def kind(mode: int) -> str:
    """Say what kind of file a mode is of."""
    return {
        stat.S_IFDIR: "a directory",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a character device",
        stat.S_IFBLK: "a block device",
        stat.S_IFLNK: "a symbolic link",
    }.get(stat.S_IFMT(mode), "a special file")


def is_text(path: str) -> bool:
    """Tell whether a path is UTF-8: another can be kept neither in the state nor in a record."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(path: str) -> str:
    """Give a path for a message."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
