"""The data of directories: blocks of dirents and names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from lamina.formats.erofs.layout import DIRENT, MAX_NAME
from lamina.formats.erofs.tree import BLOCK
from lamina.formats.erofs.unfit import Unfit

DOTS = (b".", b"..")


def sorted_names(names: Iterable[bytes]) -> list[bytes]:
    """Return the names of a directory's children, and the two dots, in the order of the image.

    Raises:
        Unfit: no file can have one of the names.
    """
    ordered = sorted(names)
    for name in ordered:
        if not 0 < len(name) <= MAX_NAME or b"/" in name or b"\0" in name or name in DOTS:
            raise Unfit(f"no file can be named {name[: MAX_NAME + 1]!r}")
    ordered += DOTS
    ordered.sort()
    return ordered


def block_starts(names: Sequence[bytes]) -> list[int]:
    """Return the index of the first name of each block; each takes what still fits."""
    starts = [0]
    used = 0
    for index, name in enumerate(names):
        used += DIRENT.size + len(name)
        if used > BLOCK:
            starts.append(index)
            used = DIRENT.size + len(name)
    return starts


def directory_size(names: Sequence[bytes]) -> int:
    """Return the bytes of a directory: whole blocks, and what is used of the last."""
    used = DIRENT.size * len(names) + sum(map(len, names))
    if used <= BLOCK:
        return used
    starts = block_starts(names)
    last = names[starts[-1] :]
    return (len(starts) - 1) * BLOCK + DIRENT.size * len(last) + sum(map(len, last))


def directory_block(names: Sequence[bytes], targets: Iterable[tuple[int, int]]) -> bytes:
    """Return one block, without what is not used of it.

    Args:
        names: of this block.
        targets: nid and EROFS_FT_* of each.
    """
    pack = DIRENT.pack
    offset = DIRENT.size * len(names)
    parts = []
    for name, (nid, file_type) in zip(names, targets, strict=True):
        parts.append(pack(nid, offset, file_type))
        offset += len(name)
    parts += names
    return b"".join(parts)


def split_blocks(names: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Yield the names of each block."""
    starts = block_starts(names)
    for start, end in zip(starts, [*starts[1:], len(names)], strict=True):
        yield names[start:end]
