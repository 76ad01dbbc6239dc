"""Device nodes of a container, and the rules of its device cgroup."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from lamina.errors import InvalidArgument, NotFound

ALLOW_ALL: dict[str, object] = {"allow": True, "access": "rwm"}
_DENY_ALL: dict[str, object] = {"allow": False, "access": "rwm"}
_DEFAULT = (
    (1, 3),  # null
    (1, 8),  # random
    (1, 7),  # full
    (5, 0),  # tty
    (1, 5),  # zero
    (1, 9),  # urandom
    (5, 1),  # console
    (136, None),  # pts/N
    (5, 2),  # ptmx
)
"""Major and minor numbers of the character devices that every container may use."""
_SKIPPED_DIRECTORIES = frozenset({"pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"})
"""Directories of `/dev` that the container has its own of, or that hold no devices."""


def default_rules() -> list[dict[str, object]]:
    """Return the rules of an unprivileged container: everything denied but the usual devices."""
    rules = [_DENY_ALL]
    for major, minor in _DEFAULT:
        rule: dict[str, object] = {"allow": True, "type": "c", "major": major, "access": "rwm"}
        if minor is not None:
            rule["minor"] = minor
        rules.append(rule)
    return rules


def rule_for(device: dict[str, object]) -> dict[str, object]:
    """Return the rule that allows a device all access."""
    return {
        "allow": True,
        "type": device["type"],
        "major": device["major"],
        "minor": device["minor"],
        "access": "rwm",
    }


def devices_at(paths: Sequence[str]) -> list[dict[str, object]]:
    """Return the device nodes at these paths of the host; a directory means those below it.

    Raises:
        NotFound: there is nothing at a path.
        InvalidArgument: what is there is no device and no directory.
    """
    found: list[dict[str, object]] = []
    for name in paths:
        path = Path(name)
        try:
            status = path.stat()
        except OSError as error:
            raise NotFound("add device", name, hint=str(error.strerror)) from error
        if stat.S_ISDIR(status.st_mode):
            found += _devices_below(path)
        elif _kind(status.st_mode):
            found.append(_node(path, status))
        else:
            raise InvalidArgument("add device", name, hint="it is no device node")
    return found


def host_devices() -> list[dict[str, object]]:
    """Return every device node of the host, for a privileged container."""
    return [device for device in _devices_below(Path("/dev")) if device["path"] != "/dev/console"]


def _devices_below(directory: Path) -> Iterator[dict[str, object]]:
    with os.scandir(directory) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    for entry in ordered:
        if entry.is_dir(follow_symlinks=False):
            if entry.name not in _SKIPPED_DIRECTORIES:
                yield from _devices_below(Path(entry.path))
            continue
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:  # devices come and go
            continue
        if _kind(status.st_mode):
            yield _node(Path(entry.path), status)


def _kind(mode: int) -> str:
    if stat.S_ISCHR(mode):
        return "c"
    return "b" if stat.S_ISBLK(mode) else ""


def _node(path: Path, status: os.stat_result) -> dict[str, object]:
    return {
        "path": str(path),
        "type": _kind(status.st_mode),
        "major": os.major(status.st_rdev),
        "minor": os.minor(status.st_rdev),
        "fileMode": stat.S_IMODE(status.st_mode),
        "uid": status.st_uid,
        "gid": status.st_gid,
    }
