"""What differs between two trees: found by walking both, or by an overlay's upper directory alone.

Changes come in the order of a walk by name in which a directory's content directly follows it.
"""

from __future__ import annotations

import enum
import os
import stat
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass

from lamina.errors import FailedPrecondition
from lamina.layer.cursor import Cursor, is_directory
from lamina.layer.node import Node, look, same, same_exactly

_PREFIXES = ("trusted.overlay.", "user.overlay.")


class ChangeKind(enum.Enum):
    """How a name differs."""

    ADD = "add"
    MODIFY = "modify"
    DELETE = "delete"
    UNMODIFIED = "unmodified"
    """Reported of files with several names only: another of them may have changed."""
    OPAQUE = "opaque"
    """The directory, reported before, hides what was in it."""


@dataclass(frozen=True, slots=True)
class Change:
    """One difference; `node` is None where there is nothing any more."""

    kind: ChangeKind
    path: bytes
    node: Node | None


@dataclass(slots=True)
class _Level:
    """A directory being walked: the names still to come, last first, and whether `lower` has it."""

    path: bytes
    names: list[bytes]
    below: dict[bytes, os.stat_result]
    here: dict[bytes, os.stat_result]
    in_lower: bool


def between(lower_fd: int | None, upper_fd: int, *, exact: bool = False) -> Generator[Change]:
    """Yield what changes the tree at `lower_fd` (None: nothing) into the one at `upper_fd`.

    With `exact` that is everything: times of directories, access control lists, and which names
    are links to the same file.
    """
    compare = _ExactComparison() if exact else _compare
    with closing(pairs(lower_fd, upper_fd)) as found:
        for path, old, new in found:
            if new is None:
                yield Change(ChangeKind.DELETE, path, None)
                continue
            node = Node(upper_fd, path, new)
            before = node if old is None or lower_fd is None else Node(lower_fd, path, old)
            change = compare(before, node, old is None)
            if change is not None:
                yield change


def pairs(
    lower_fd: int | None, upper_fd: int
) -> Generator[tuple[bytes, os.stat_result | None, os.stat_result | None]]:
    """Yield each path with its status in either tree, None where it is not there.

    What is below a directory that only `lower_fd` has is left out.
    """
    with Cursor(".", dir_fd=upper_fd) as upper:
        if lower_fd is None:
            yield from _pairs(None, upper)
            return
        with Cursor(".", dir_fd=lower_fd) as lower:
            yield from _pairs(lower, upper)


def _pairs(
    lower: Cursor | None, upper: Cursor
) -> Generator[tuple[bytes, os.stat_result | None, os.stat_result | None]]:
    levels = [_level(b"", lower, upper)]
    while levels:
        level = levels[-1]
        if not level.names:
            levels.pop()
            if levels:
                upper.leave()
                if lower is not None and level.in_lower:
                    lower.leave()
            continue
        name = level.names.pop()
        path = level.path + name
        old, new = level.below.get(name), level.here.get(name)
        yield path, old, new
        if new is not None and is_directory(new):
            upper.enter(name)
            both = lower is not None and old is not None and is_directory(old)
            if lower is not None and both:
                lower.enter(name)
            levels.append(_level(path + b"/", lower if both else None, upper))


def _level(path: bytes, lower: Cursor | None, upper: Cursor) -> _Level:
    below = {} if lower is None else _statuses(lower.fd)
    here = _statuses(upper.fd)
    names = sorted(below.keys() | here.keys(), reverse=True)
    return _Level(path, names, below, here, lower is not None)


def _statuses(fd: int) -> dict[bytes, os.stat_result]:
    with os.scandir(fd) as entries:
        return {os.fsencode(entry.name): entry.stat(follow_symlinks=False) for entry in entries}


def _compare(old: Node, new: Node, added: bool) -> Change | None:
    if added:
        return Change(ChangeKind.ADD, new.path, new)
    if not same(old, new):
        return Change(ChangeKind.MODIFY, new.path, new)
    if new.status.st_nlink > 1 and not is_directory(new.status):
        return Change(ChangeKind.UNMODIFIED, new.path, new)
    return None


class Links:
    """Which names belong to one file, by the first of them in the order of the walk."""

    def __init__(self) -> None:
        self._firsts: dict[tuple[int, int], bytes] = {}

    def first(self, path: bytes, status: os.stat_result) -> bytes:
        """Return the first name of the file; the path itself for a directory."""
        if is_directory(status):
            return path
        return self._firsts.setdefault((status.st_dev, status.st_ino), path)


class _ExactComparison:
    """Compares as `_compare` does, and everything."""

    def __init__(self) -> None:
        self._old, self._new = Links(), Links()

    def __call__(self, old: Node, new: Node, added: bool) -> Change | None:
        path = new.path
        first = self._new.first(path, new.status)
        if added:
            return Change(ChangeKind.ADD, path, new)
        if self._old.first(path, old.status) != first or not same_exactly(old, new):
            return Change(ChangeKind.MODIFY, path, new)
        if new.status.st_nlink > 1 and not is_directory(new.status):
            return Change(ChangeKind.UNMODIFIED, path, new)
        return None


def in_upper(upper_fd: int, lower_fds: Sequence[int], *, exact: bool = False) -> Generator[Change]:
    """Yield what the upper directory of an overlay, not mounted, changes in its lower ones.

    Costs what was changed, not what there is. `lower_fds` are given nearest first. With `exact`
    all that the upper directory has counts as changed.

    Raises:
        FailedPrecondition: a directory was renamed (`redirect_dir`), or a file's data was left
            below (`metacopy`); then only `between` can tell.
    """
    with Cursor(".", dir_fd=upper_fd) as cursor:
        levels = [(b"", _sorted_statuses(cursor.fd))]
        while levels:
            prefix, pending = levels[-1]
            if not pending:
                levels.pop()
                if levels:
                    cursor.leave()
                continue
            name, status = pending.pop()
            node = Node(upper_fd, prefix + name, status)
            flags = _overlay_attributes(cursor.fd, name, node)
            yield from _upper_changes(node, flags, _visible(lower_fds, node.path), exact)
            if is_directory(status):
                cursor.enter(name)
                levels.append((node.path + b"/", _sorted_statuses(cursor.fd)))


def _sorted_statuses(fd: int) -> list[tuple[bytes, os.stat_result]]:
    return sorted(_statuses(fd).items(), key=lambda item: item[0], reverse=True)


def _upper_changes(
    node: Node, flags: frozenset[str], base: Node | None, exact: bool
) -> Generator[Change]:
    if _is_whiteout(node.status) or "whiteout" in flags:
        if base is not None:
            yield Change(ChangeKind.DELETE, node.path, None)
        return
    unchanged = not exact and base is not None and same(base, node)
    if unchanged and is_directory(node.status) and base is not None:
        unchanged = base.status.st_mtime_ns == node.status.st_mtime_ns
    hides = "opaque" in flags and base is not None and is_directory(base.status)
    if not unchanged or hides or (node.status.st_nlink > 1 and not is_directory(node.status)):
        yield Change(ChangeKind.ADD if base is None else ChangeKind.MODIFY, node.path, node)
    if hides:
        yield Change(ChangeKind.OPAQUE, node.path, node)


def _is_whiteout(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _overlay_attributes(fd: int, name: bytes, node: Node) -> frozenset[str]:
    """Return what overlayfs says of an entry: `opaque`, `whiteout`.

    Raises:
        FailedPrecondition: it says more than its upper directory has.
    """
    if not (stat.S_ISREG(node.status.st_mode) or is_directory(node.status)):
        return frozenset()
    path = b"/proc/self/fd/%d/%s" % (fd, name)
    found = set()
    for attribute in os.listxattr(path, follow_symlinks=False):
        for prefix in _PREFIXES:
            if attribute.startswith(prefix):
                found.add(attribute.removeprefix(prefix))
                value = os.getxattr(path, attribute, follow_symlinks=False)
                if attribute.endswith(".opaque") and value != b"y":
                    found.discard("opaque")
    if found & {"redirect", "metacopy"}:
        raise FailedPrecondition(
            "read the changes of an overlay from its upper directory",
            os.fsdecode(node.path),
            hint="it was made with redirect_dir or metacopy; compare the mounted trees",
        )
    return frozenset(found)


def _visible(lower_fds: Sequence[int], path: bytes) -> Node | None:
    """Return what the stack of lower directories shows at a path."""
    for lower_fd in lower_fds:
        try:
            node = look(lower_fd, path)
        except NotADirectoryError:
            return None
        if node is not None:
            return None if _is_whiteout(node.status) else node
        if _hides_below(lower_fd, path):
            return None
    return None


def _hides_below(lower_fd: int, path: bytes) -> bool:
    """Tell whether a directory on the way to `path` is opaque in this lower layer."""
    parts = path.split(b"/")[:-1]
    for depth in range(len(parts)):
        node = look(lower_fd, b"/".join(parts[: depth + 1]))
        if node is None:
            return False
        fd = node.open()
        try:
            for prefix in _PREFIXES:
                name = f"{prefix}opaque"
                if name in os.listxattr(fd) and os.getxattr(fd, name) == b"y":
                    return True
        finally:
            os.close(fd)
    return False
