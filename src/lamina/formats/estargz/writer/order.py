"""Which members of a tar count, and in what order a blob has them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from lamina.errors import NotImplementedHere
from lamina.formats.estargz.tree import NO_PREFETCH, PREFETCH
from lamina.formats.estargz.writer.members import Member, Spool, make_member
from lamina.formats.stream import ChunkStream
from lamina.formats.tar import Entry, TarReader, Type
from lamina.formats.tar.layer import PREFIX, clean

_LANDMARK = b"\x0f"


class Order(NamedTuple):
    """What `arrange` returns.

    Attributes:
        members: in the order of the blob.
        prioritized: how many of them come before the landmark.
        missing: paths to be prioritised that the layer does not have.
    """

    members: list[Member]
    prioritized: int
    missing: tuple[bytes, ...]


def surviving(members: Sequence[Member], spool: Spool) -> list[Member]:
    """Return the members that are left when the archive is extracted, in its order.

    The last of a name counts. What replaces a directory takes all below it away. A hard link keeps
    the file that it was made of when the name of that is given to another: it becomes that file
    itself.

    Raises:
        NotImplementedHere: a path leads through a link or a file, or a hard link to no file of the
            layer, which no TOC can say.
    """
    last: dict[bytes, int] = {}
    replaced: dict[bytes, int] = {}
    """Where each path was last no directory."""
    targets: dict[int, int] = {}
    for index, member in enumerate(members):
        if member.type == Type.HARD_LINK and member.target in last:
            targets[index] = last[member.target]
        if member.type != Type.DIRECTORY:
            replaced[member.path] = index
        last[member.path] = index
    alive = [
        last[member.path] == index and not _is_below(member.path, index, replaced)
        for index, member in enumerate(members)
    ]
    heirs: dict[int, Member] = {}
    kept: list[Member] = []
    for index, member in enumerate(members):
        if not alive[index]:
            continue
        for above in _ancestors(member.path):
            if above in replaced and members[last[above]].type != Type.DIRECTORY:
                raise NotImplementedHere(
                    "describe a path through what is no directory in a TOC",
                    member.path.decode()[:200],
                )
        target = targets.get(index)
        if target is not None and not alive[target]:
            member = _inherit(member, _origin(target, targets), members, alive, heirs, spool)
        kept.append(member)
    _check_links(kept)
    return kept


def arrange(members: Sequence[Member], prioritized: Iterable[bytes] | None) -> Order:
    """Put the prioritised members first, each behind its directories and what it links to.

    Args:
        members: that count.
        prioritized: names, in the order in which they are wanted; None for no landmark.
    """
    if prioritized is None:
        return Order(list(members), 0, ())
    by_path = {member.path: member for member in members}
    first: dict[bytes, Member] = {}
    missing: list[bytes] = []
    for name in prioritized:
        path = clean(name)
        if path in by_path:
            _put(path, by_path, first)
        else:
            missing.append(path)
    mark = PREFETCH if first else NO_PREFETCH
    landmark = make_member(Entry(mark, mode=0, size=len(_LANDMARK)), _LANDMARK)
    rest = [member for member in members if member.path not in first]
    return Order([*first.values(), landmark, *rest], len(first), tuple(missing))


def _put(path: bytes, by_path: dict[bytes, Member], first: dict[bytes, Member]) -> None:
    """Put a path behind what it needs; links that lead to each other end where they begin."""
    pending = [path]
    seen = {path}
    while (target := by_path[pending[-1]].target) in by_path and target not in seen:
        pending.append(target)
        seen.add(target)
    for name in reversed(pending):
        for above in (b"", *_ancestors(name), name):
            if above in by_path:
                first.setdefault(above, by_path[above])


def _ancestors(path: bytes) -> list[bytes]:
    """Return the directories above a path, the highest first, without the root."""
    if b"/" not in path:
        return []
    found = []
    while path := path.rpartition(b"/")[0]:
        found.append(path)
    return found[::-1]


def _is_below(path: bytes, index: int, replaced: dict[bytes, int]) -> bool:
    """Tell whether a directory above was replaced by something else after that member."""
    return any(replaced.get(above, -1) > index for above in _ancestors(path))


def _origin(index: int, targets: dict[int, int]) -> int:
    while index in targets:
        index = targets[index]
    return index


def _inherit(
    link: Member,
    origin: int,
    members: Sequence[Member],
    alive: Sequence[bool],
    heirs: dict[int, Member],
    spool: Spool,
) -> Member:
    """Return a hard link as one to a name that the file still has, or as the file itself."""
    source = members[origin]
    holder = source if alive[origin] else heirs.get(origin)
    blocks = spool.header(link if holder is not None else source)
    entry = TarReader(ChunkStream([blocks])).next()
    assert entry is not None, "a member begins with its header"
    entry.name = link.path
    if holder is not None:
        entry.linkname = holder.path
        return make_member(entry)
    heir = make_member(entry, source.body)
    heir.pieces = source.pieces
    heirs[origin] = heir
    return heir


def _check_links(members: Sequence[Member]) -> None:
    """Refuse hard links that do not lead to a file of the layer.

    Args:
        members: all that count.

    Raises:
        NotImplementedHere: one leads to nothing, to a directory, or in a circle.
    """
    if all(member.type != Type.HARD_LINK for member in members):
        return
    files = {
        member.path: member
        for member in members
        if member.type != Type.DIRECTORY and not _is_whiteout(member.path)
    }
    sound: set[bytes] = set()
    for member in files.values():
        passed: set[bytes] = set()
        here: Member | None = member
        while here is not None and here.type == Type.HARD_LINK and here.path not in sound:
            # One that was passed before ends here as one that is missing does.
            passed.add(here.path)
            here = None if here.target in passed else files.get(here.target)
        if here is None:
            what = "describe a hard link to no file of the layer in a TOC"
            raise NotImplementedHere(what, member.path.decode()[:200])
        sound |= passed


def _is_whiteout(path: bytes) -> bool:
    return path.rpartition(b"/")[2].startswith(PREFIX)
