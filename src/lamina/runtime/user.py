"""Who a container's process runs as: `USER[:GROUP]` looked up in the container's own files.

The image decides what `/etc/passwd` is, so it is opened with the container's root as `/`: a
symbolic link in it cannot lead to the host's file.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from lamina.errors import InvalidArgument, NotFound
from lamina.linux.openat2 import RESOLVE_IN_ROOT, openat2

_MAX_BYTES = 1 << 20
_MAX_ID = 2**32 - 2

Accounts = Callable[[str], str]
"""Returns the text of a file of accounts, given its path in the container; "" where absent."""


class User(NamedTuple):
    """Numbers for the kernel; the additional groups include `gid`, as containerd gives them."""

    uid: int = 0
    gid: int = 0
    additional_gids: tuple[int, ...] = (0,)

    def as_oci(self) -> dict[str, object]:
        """Return its JSON object."""
        gids = list(self.additional_gids)
        return {"uid": self.uid, "gid": self.gid, "additionalGids": gids}


def account_files(rootfs: Path) -> Accounts:
    """Return a reader of the files of accounts below `rootfs`.

    It raises `InvalidArgument` for a file that is no regular file, or of more than 1 MiB.
    """

    def read(path: str) -> str:
        root = os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # O_NONBLOCK: an image may have a fifo there.
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
            fd = openat2(path, flags, dir_fd=root, resolve=RESOLVE_IN_ROOT)
        except (FileNotFoundError, NotADirectoryError):
            return ""
        except OSError as error:
            raise InvalidArgument(f"read {path} of the container: {error.strerror}") from error
        finally:
            os.close(root)
        try:
            regular = stat.S_ISREG(os.fstat(fd).st_mode)
            data = os.read(fd, _MAX_BYTES + 1) if regular else b""
        finally:
            os.close(fd)
        if not regular or len(data) > _MAX_BYTES:
            raise InvalidArgument(
                "look up users in the container's file", path, hint="it is no file of under 1 MiB"
            )
        return data.decode("utf-8", "surrogateescape")

    return read


def resolve(text: str, accounts: Accounts) -> User:
    """Return the user that `text` means: "", `NAME`, `UID`, `NAME:GROUP` or `UID:GID`.

    As in containerd: "" is root; a numeric uid need not be in `/etc/passwd` and has gid 0 then; the
    additional groups are those that list the user's name, beside an explicit group too.

    Raises:
        NotFound: a name that the container's files do not have.
        InvalidArgument: a number too big, or more than one colon.
    """
    name, colon, group = text.partition(":")
    if ":" in group or (colon and not (name and group)):
        raise InvalidArgument("use user", text, hint="write USER or USER:GROUP")
    user = _find_user(name or "0", accounts)
    if not group:
        return user
    gid = _number(group)
    if gid is None:
        gid = _find_group(group, accounts)
    listed = [other for other in user.additional_gids if other not in {user.gid, gid}]
    return User(user.uid, gid, (gid, *listed))


def _find_user(name: str, accounts: Accounts) -> User:
    uid = _number(name)
    for entry in _entries(accounts("/etc/passwd"), 7):
        found, gid = _number(entry[2]), _number(entry[3])
        if found is None or gid is None:
            continue
        if entry[0] == name if uid is None else found == uid:
            return User(found, gid, _groups_of(entry[0], gid, accounts))
    if uid is None:
        raise NotFound("user of the container", name, hint="its /etc/passwd has no such name")
    return User(uid)


def _find_group(name: str, accounts: Accounts) -> int:
    for entry in _entries(accounts("/etc/group"), 4):
        gid = _number(entry[2])
        if entry[0] == name and gid is not None:
            return gid
    raise NotFound("group of the container", name, hint="its /etc/group has no such name")


def _groups_of(user: str, gid: int, accounts: Accounts) -> tuple[int, ...]:
    """Return the user's own group, then those that list the user as a member."""
    gids = {gid: None}
    for entry in _entries(accounts("/etc/group"), 4):
        number = _number(entry[2])
        if number is not None and user in entry[3].split(","):
            gids[number] = None
    return tuple(gids)


def _entries(text: str, fields: int) -> Iterator[list[str]]:
    """Yield the well-formed lines; others are skipped, as the C library does."""
    for line in text.split("\n"):
        entry = line.strip().split(":")
        if len(entry) == fields and not entry[0].startswith("#"):
            yield entry


def _number(text: str) -> int | None:
    """Return the id, or None where `text` is a name."""
    if not (text.isascii() and text.isdigit()):
        return None
    value = int(text[:11])
    if value > _MAX_ID:
        raise InvalidArgument("use user or group id", text, hint=f"the highest is {_MAX_ID}")
    return value
