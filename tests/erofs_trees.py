"""Any tree that an EROFS image can have, as a property of tests."""

from __future__ import annotations

import stat

from hypothesis import strategies as st

from lamina.formats.erofs.tree import BLOCK, HOLE, Extent, Inode
from tests.erofs import Data, directory, regular, symlink

_NAMES = st.binary(min_size=1, max_size=12).filter(
    lambda name: not set(name) & {0, 0x2F} and name not in {b".", b".."}
)
_XATTRS = st.dictionaries(
    st.sampled_from([b"user.a", b"user.b", b"trusted.c", b"security.d"]),
    st.binary(max_size=40) | st.just(b"v" * 3000),
    max_size=3,
)
_TIMES = st.just(10**18) | st.integers(-(2**62), 2**62)
_IDS = st.integers(0, 3) | st.integers(0, 2**32 - 2)
_PARTS = st.lists(st.tuples(st.sampled_from([HOLE, 0, 1, 2]), st.integers(1, 9)), max_size=5)


@st.composite
def trees(draw: st.DrawFn, data: Data, depth: int = 3) -> Inode:
    root = draw(_directories(data, depth))
    files = [inode for inode in root.children.values() if not inode.is_directory]
    if files:
        root.children[b"\xf0 again"] = draw(st.sampled_from(files))
    return root


def _directories(data: Data, depth: int) -> st.SearchStrategy[Inode]:
    others = _files(data) | _others()
    below = others | _directories(data, depth - 1) if depth else others
    children = st.dictionaries(_NAMES, below, max_size=8)
    values = (_IDS, _IDS, _TIMES, _XATTRS, children)
    return st.tuples(*values).map(
        lambda v: directory(v[4], uid=v[0], gid=v[1], mtime=v[2], xattrs=v[3])
    )


def _files(data: Data) -> st.SearchStrategy[Inode]:
    def make(
        parts: list[tuple[int, int]], rest: int, mtime: int, xattrs: dict[bytes, bytes]
    ) -> Inode:
        extents = []
        for index, (device, blocks) in enumerate(parts):
            length = blocks * BLOCK - (rest if index == len(parts) - 1 else 0)
            content = b"%d" % device * length
            here = device != HOLE
            extents.append(data.put(content[:length], device) if here else Extent(length, HOLE, 0))
        return regular(*extents, mtime=mtime, xattrs=xattrs)

    return st.builds(make, _PARTS, st.integers(0, BLOCK - 1), _TIMES, _XATTRS)


def _others() -> st.SearchStrategy[Inode]:
    targets = st.binary(min_size=1, max_size=30).filter(lambda target: 0 not in target)
    links = st.builds(lambda target, times: symlink(target * 100, mtime=times), targets, _TIMES)
    kinds = st.sampled_from([stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK])
    return links | st.builds(lambda kind, mtime: Inode(kind | 0o604, mtime=mtime), kinds, _TIMES)
