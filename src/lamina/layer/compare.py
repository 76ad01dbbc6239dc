"""Whether two trees are the same, entry by entry: all that a layer can carry, to the last byte."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from lamina.core.cancel import check_cancelled
from lamina.layer.changes import Links, pairs
from lamina.layer.node import Node, same_content


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as it should be; its text tells it in a line.

    Attributes:
        path: relative to the root, `.` for the root itself.
        what: `mode`, `owner`, `mtime`, `content`... or `entry` where there is one too few or many.
    """

    path: bytes
    what: str
    expected: str
    got: str

    def __str__(self) -> str:
        return f"{os.fsdecode(self.path)}: {self.what} is {self.got}, not {self.expected}"


def differences(
    expected: Path,
    got: Path,
    *,
    granularity_ns: int = 1,
    is_read: Callable[[bytes], bool] = lambda _: True,
) -> Generator[Difference]:
    """Yield in what the tree `got` is not the tree `expected`; both must be at rest.

    Compared are names, types, modes, owners, sizes, modification times, device numbers, targets of
    symbolic links, which names are hard links to the same file, the attributes `user.*` and
    `security.capability`, access control lists, and content. Left out are sockets, which no layer
    can carry, access times, and where the holes of a file are.

    Args:
        expected: root of the one tree.
        got: root of the other.
        granularity_ns: times are compared in such units, in nanoseconds: the filesystem of `got`
            may keep no finer ones.
        is_read: tells of a path whether content, attributes and access control lists are to be
            read. All else, which a directory's listing tells, is compared in any case.

    Raises:
        OSError: something cannot be read.
    """
    with ExitStack() as stack:
        roots = [_open(stack, path) for path in (expected, got)]
        comparison = _Comparison(granularity_ns, is_read)
        yield from comparison.attributes(*(Node(fd, b".", os.fstat(fd)) for fd in roots))
        for path, one, other in stack.enter_context(closing(pairs(*roots))):
            check_cancelled()
            yield from comparison.entry(
                path, _node(roots[0], path, one), _node(roots[1], path, other)
            )


def granularity(fd: int) -> int:
    """Return in which units, in nanoseconds, the filesystem of a directory keeps times.

    It is tried out on the directory, whose times are others afterwards.
    """
    os.utime(fd, ns=(_TRIED, _TRIED))
    kept = os.fstat(fd).st_mtime_ns
    return next((unit for unit in _UNITS if kept // unit == _TRIED // unit), _UNITS[-1])


_TRIED = 1_500_000_001_123_456_789
_UNITS = (1, 100, 1_000, 1_000_000, 1_000_000_000, 2_000_000_000)
"""ext4 with inodes of 128 bytes keeps seconds, and FAT every other one."""


class _Comparison:
    def __init__(self, granularity_ns: int, is_read: Callable[[bytes], bool]) -> None:
        self._unit = granularity_ns
        self._is_read = is_read
        self._expected, self._got = Links(), Links()

    def entry(self, path: bytes, a: Node | None, b: Node | None) -> Generator[Difference]:
        if a is None or b is None:
            if a is not None or b is not None:
                yield Difference(path, "entry", _kind(a), _kind(b))
            return
        if stat.S_IFMT(a.status.st_mode) != stat.S_IFMT(b.status.st_mode):
            yield Difference(path, "entry", _kind(a), _kind(b))
            return
        first = self._expected.first(path, a.status)
        links = first, self._got.first(path, b.status)
        yield from _unequal(path, "first name of the file", *map(os.fsdecode, links))
        yield from self.attributes(a, b)
        # Another name of a file has been read under its first.
        if first == path and self._is_read(path):
            yield from self._content(a, b)

    def attributes(self, a: Node, b: Node) -> Generator[Difference]:
        """Yield how everything but content and links differs."""
        x, y = a.status, b.status
        yield from _unequal(a.path, "mode", f"{x.st_mode:o}", f"{y.st_mode:o}")
        yield from _unequal(a.path, "owner", f"{x.st_uid}:{x.st_gid}", f"{y.st_uid}:{y.st_gid}")
        if stat.S_ISREG(x.st_mode):
            yield from _unequal(a.path, "size", f"{x.st_size} bytes", f"{y.st_size} bytes")
        if x.st_mtime_ns // self._unit != y.st_mtime_ns // self._unit:
            yield Difference(a.path, "mtime", _seconds(x.st_mtime_ns), _seconds(y.st_mtime_ns))
        yield from _unequal(a.path, "device", _device(x), _device(y))
        if a.path != b"." and not self._is_read(a.path):
            return
        one, other = a.xattrs(exact=True), b.xattrs(exact=True)
        for name in sorted(one.keys() | other.keys()):
            values = (repr(value.get(name)) for value in (one, other))
            yield from _unequal(a.path, f"attribute {os.fsdecode(name)}", *values)

    def _content(self, a: Node, b: Node) -> Generator[Difference]:
        if stat.S_ISLNK(a.status.st_mode):
            yield from _unequal(a.path, "target", repr(a.target()), repr(b.target()))
        elif (
            stat.S_ISREG(a.status.st_mode)
            and a.status.st_size == b.status.st_size
            and not same_content(a, b)
        ):
            yield Difference(a.path, "content", "the same", "another")


def _unequal(path: bytes, what: str, expected: str, got: str) -> Generator[Difference]:
    if expected != got:
        yield Difference(path, what, expected, got)


def _open(stack: ExitStack, path: Path) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    return fd


def _node(root_fd: int, path: bytes, status: os.stat_result | None) -> Node | None:
    if status is None or stat.S_ISSOCK(status.st_mode):
        return None
    return Node(root_fd, path, status)


_KINDS = {
    stat.S_IFREG: "a file",
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFIFO: "a pipe",
}


def _kind(node: Node | None) -> str:
    return "missing" if node is None else _KINDS[stat.S_IFMT(node.status.st_mode)]


def _device(status: os.stat_result) -> str:
    if not (stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode)):
        return ""
    return f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"


def _seconds(ns: int) -> str:
    return f"{ns // 1_000_000_000}.{ns % 1_000_000_000:09d}"
