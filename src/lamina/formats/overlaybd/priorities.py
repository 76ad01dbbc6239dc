"""A list of paths in place of a trace: what to read of a device early, most urgent first.

One path a line, from the root of the filesystem on. What ends with `/` or `*` is a directory with
all that is in it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from lamina.errors import FormatError, InvalidArgument, ResourceExhausted

FORMAT = "overlaybd priority list"
MAX_SIZE = 64 << 10
"""Bytes of a list; overlaybd reads no longer one."""


class Priority(NamedTuple):
    """A path.

    Attributes:
        path: absolute, of names that are separated by one slash each; `/` for the root.
        tree: whether it is a directory with all that is in it.
    """

    path: bytes
    tree: bool = False


def read_priorities(raw: bytes) -> list[Priority]:
    """Return the paths of a list, each once. Spaces around them and empty lines are passed over.

    Raises:
        FormatError: it is longer than MAX_SIZE, or a path has a NUL or `..`.
    """
    if len(raw) > MAX_SIZE:
        raise FormatError(FORMAT, MAX_SIZE, expected="the end of the list", got="more")
    found: dict[Priority, None] = {}
    at = 0
    for line in raw.split(b"\n"):
        text = line.strip(b" \t\r")
        if text:
            found[_parse(text, at)] = None
        at += len(line) + 1
    return list(found)


def write_priorities(priorities: Iterable[Priority]) -> bytes:
    """Return the list of paths.

    overlaybd itself passes over paths with other characters than ASCII letters, digits, `_`, `-`,
    `.` and `/`.

    Raises:
        InvalidArgument: a path would not be the same when it is read again.
        ResourceExhausted: the list would be longer than MAX_SIZE.
    """
    lines = []
    for priority in priorities:
        line = priority.path.rstrip(b"/") + (b"/" if priority.tree else b"")
        if not _is_read_as(line, priority):
            hint = "it must be absolute and clean, and its end nothing that has a meaning"
            raise InvalidArgument("write priority", repr(priority.path), hint=hint)
        lines.append(line + b"\n")
    raw = b"".join(lines)
    if len(raw) > MAX_SIZE:
        raise ResourceExhausted(f"write a priority list of more than {MAX_SIZE} bytes")
    return raw


def _is_read_as(line: bytes, priority: Priority) -> bool:
    try:
        return read_priorities(line) == [priority]
    except FormatError:
        return False


def _parse(text: bytes, at: int) -> Priority:
    names = [name for name in text.rstrip(b"*").split(b"/") if name not in {b"", b"."}]
    if b".." in names or b"\0" in text:
        raise FormatError(FORMAT, at, expected="a path without NUL and ..", got=repr(text[:200]))
    return Priority(b"/" + b"/".join(names), text.endswith((b"/", b"*")))
