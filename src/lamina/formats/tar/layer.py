"""What an archive means where it is a layer of an image (OCI image specification, `layer.md`).

A name is taken from the root of the image, as if that were `/`. A file `.wh.NAME` deletes what
lower layers have as NAME, and `.wh..wh..opq` all that they have in its directory.
"""

from __future__ import annotations

from lamina.errors import FormatError
from lamina.formats.tar.layout import Entry

PREFIX = b".wh."
OPAQUE_MARKER = b".wh..wh..opq"

_MAX_TIME = (1 << 63) - 1
_MAX_ID = (1 << 32) - 2
"""2**32 - 1 tells chown(2) to change nothing."""
_MAJOR_BITS, _MINOR_BITS = 12, 20
"""Of device numbers in Linux (<linux/kdev_t.h>)."""


def clean(name: bytes) -> bytes:
    """Return a name in an archive as a relative path without `.`, `..` and doubled slashes.

    `..` takes back the name before it and stops at the root, so `a/../../b` is `b`. The root itself
    is the empty path.
    """
    name = name.rstrip(b"/")
    if b"//" not in name and b"/." not in name and not name.startswith((b".", b"/")):
        return name
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            parts = parts[:-1]
        elif part not in {b"", b"."}:
            parts.append(part)
    return b"/".join(parts)


def deleted_name(base: bytes, at: int) -> bytes | None:
    """Return what the whiteout `base` deletes, or None if that is no whiteout.

    Raises:
        FormatError: the name would lead out of its directory.
    """
    if not base.startswith(PREFIX) or base == OPAQUE_MARKER:
        return None
    name = base[len(PREFIX) :]
    if name in {b"", b".", b".."}:
        raise FormatError("tar", at, expected="a whiteout of a name", got=repr(base))
    return name


def check_owner(entry: Entry, at: int) -> None:
    """Refuse an owner that the kernel has no number for.

    Raises:
        FormatError: it is negative or takes more than 32 bits.
    """
    if not (0 <= entry.uid <= _MAX_ID and 0 <= entry.gid <= _MAX_ID):
        got = f"{entry.uid}:{entry.gid}"
        raise FormatError("tar", at, expected="ids of 32 bits", got=got)


def check_device(entry: Entry, at: int) -> None:
    """Refuse a device that Linux has no number for.

    Raises:
        FormatError: major or minor are out of range.
    """
    if not (0 <= entry.devmajor < 1 << _MAJOR_BITS and 0 <= entry.devminor < 1 << _MINOR_BITS):
        got = f"{entry.devmajor}:{entry.devminor}"
        raise FormatError("tar", at, expected="device numbers of Linux", got=got)


def times(entry: Entry) -> tuple[int, int]:
    """Return access and modification time in nanoseconds.

    The former is never before the latter; what lies before 1970 or beyond 63 bits becomes 1970.
    """
    latest = entry.mtime if entry.atime is None else max(entry.atime, entry.mtime)
    return _bounded(latest), _bounded(entry.mtime)


def _bounded(time: int) -> int:
    return time if 0 <= time <= _MAX_TIME else 0
