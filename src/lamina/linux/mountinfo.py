"""The mounts of this process's mount namespace: /proc/self/mountinfo, proc_pid_mountinfo(5)."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

_ESCAPE = re.compile(rb"\\([0-7]{3})")


class MountInfo(NamedTuple):
    """One line of mountinfo.

    Attributes:
        id: unique among the mounts of now; reused later.
        parent: id of the mount that this one is mounted on.
        device: `major:minor` as `st_dev` has it.
        root: what of the filesystem is mounted (a path inside it).
        point: where, as seen from this process's root.
        options: of this mount alone (`ro`, `nosuid`, ...).
        propagation: `shared:N`, `master:N`, ...; empty for a private mount.
        type: filesystem type, with its subtype (`fuse.sshfs`).
        source: what it was mounted from, for show.
        super_options: of the filesystem, shared by all its mounts.
    """

    id: int
    parent: int
    device: str
    root: str
    point: str
    options: tuple[str, ...]
    propagation: tuple[str, ...]
    type: str
    source: str
    super_options: tuple[str, ...]


def parse_mountinfo(data: bytes) -> list[MountInfo]:
    """Parse the whole file; later mounts come after those that they cover."""
    return [_parse_line(line) for line in data.splitlines()]


def read_mountinfo(pid: int | str = "self") -> list[MountInfo]:
    """Return all mounts that the process sees."""
    return parse_mountinfo(Path(f"/proc/{pid}/mountinfo").read_bytes())


def mounts_at_or_below(path: str | os.PathLike[str]) -> list[MountInfo]:
    """Return the mounts on `path` (absolute, without symlinks) and below it, in mount order."""
    top = os.fspath(path).rstrip("/")
    return [
        info for info in read_mountinfo() if info.point == top or info.point.startswith(f"{top}/")
    ]


def _parse_line(line: bytes) -> MountInfo:
    # The optional fields, any number of them, end with a lone "-".
    before, _, after = line.partition(b" - ")
    number, parent, device, root, point, options, *propagation = before.split(b" ")
    type_, source, super_options = after.split(b" ", 2)
    return MountInfo(
        int(number),
        int(parent),
        device.decode(),
        _text(root),
        _text(point),
        tuple(_text(option) for option in options.split(b",")),
        tuple(_text(field) for field in propagation if field),
        _text(type_),
        _text(source),
        tuple(_text(option) for option in super_options.split(b",")),
    )


def _text(field: bytes) -> str:
    return os.fsdecode(_ESCAPE.sub(lambda match: bytes((int(match[1], 8),)), field))
