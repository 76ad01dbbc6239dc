"""GNU sparse files: the map of data pieces, in the four places where it can be.

GNU tar manual, "Storing Sparse Files": old headers (`S`) have four pieces in the header block and
21 in each block that follows; pax format 0.0 and 0.1 have them in the extended header; format 1.0
has them as decimal lines in the first blocks of the body.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from lamina.errors import FormatError
from lamina.formats.tar import pax
from lamina.formats.tar.layout import BLOCK, MAX_SPECIAL, Entry, cstring, number

_MAX_FILE_SIZE = (1 << 63) - 1


def apply_old(entry: Entry, block: bytes, read: Callable[[], bytes], at: int) -> None:
    """Set the map from an old GNU header; `read` returns the next block of the archive."""
    entry.real_size = number(block, 483, 495, at)
    numbers = _old_numbers(block, 386, 4, at)
    extended = block[482]
    blocks = 0
    while extended:
        blocks += 1
        if blocks * BLOCK > MAX_SPECIAL:
            raise _bad(at, "a map of at most 1 MiB", "a longer one")
        block = read()
        numbers += _old_numbers(block, 0, 21, at)
        extended = block[504]
    _set_map(entry, numbers, at)


def _old_numbers(block: bytes, start: int, count: int, at: int) -> list[int]:
    numbers: list[int] = []
    for position in range(start, start + 24 * count, 24):
        if not block[position]:
            break
        numbers.append(number(block, position, position + 12, at))
        numbers.append(number(block, position + 12, position + 24, at))
    return numbers


def apply_pax(
    entry: Entry, records: Mapping[bytes, bytes], read: Callable[[], bytes], at: int
) -> None:
    """Set the map, name and size from an extended header, if it describes a sparse file.

    For format 1.0 `read` returns the next block of the body, whose size in `entry` is reduced
    by the blocks that the map takes.
    """
    version = (records.get(b"GNU.sparse.major"), records.get(b"GNU.sparse.minor"))
    if version == (b"1", b"0"):
        _set_names(entry, records, at)
        _set_map(entry, _body_numbers(entry, read, at), at)
    elif pax.SPARSE_MAP in records and version in {(None, None), (b"0", b"0"), (b"0", b"1")}:
        _set_names(entry, records, at)
        numbers = [pax.integer(part, at) for part in records[pax.SPARSE_MAP].split(b",") if part]
        _set_map(entry, numbers, at)


def _set_names(entry: Entry, records: Mapping[bytes, bytes], at: int) -> None:
    entry.name = cstring(records.get(b"GNU.sparse.name", b"")) or entry.name
    size = records.get(b"GNU.sparse.realsize") or records.get(b"GNU.sparse.size")
    if size is None:
        raise _bad(at, "the size of a sparse file", "none")
    entry.real_size = pax.integer(size, at)


def _body_numbers(entry: Entry, read: Callable[[], bytes], at: int) -> list[int]:
    r"""Read `COUNT\n(OFFSET\nLENGTH\n)*`, padded to whole blocks."""
    text = b""
    lines: list[bytes] = []
    wanted = 1
    while len(lines) < wanted:
        if entry.size < BLOCK or len(lines) * 2 > MAX_SPECIAL:
            raise _bad(at, "a map of at most 1 MiB inside the body", "a longer one")
        entry.size -= BLOCK
        *complete, text = (text + read()).split(b"\n")
        if len(text) > 20 and wanted - len(lines) > len(complete):
            raise _bad(at, "a number", repr(text[:40]))
        lines += complete
        wanted = 1 + 2 * pax.integer(lines[0], at) if lines else 1
    return [pax.integer(line, at) for line in lines[1:wanted]]


def _set_map(entry: Entry, numbers: Sequence[int], at: int) -> None:
    """Check that the pieces ascend, lie inside the file, and make up the body."""
    if len(numbers) % 2 or not 0 <= entry.real_size <= _MAX_FILE_SIZE:
        raise _bad(at, "pairs of offset and length, and a size", f"{len(numbers)} numbers")
    pieces = tuple(zip(numbers[::2], numbers[1::2], strict=True))
    end = 0
    for offset, length in pieces:
        if length < 0 or not end <= offset <= entry.real_size - length:
            raise _bad(at, f"pieces in order below {entry.real_size}", f"{offset}+{length}")
        end = offset + length
    total = sum(length for _, length in pieces)
    if total != entry.size:
        raise _bad(at, f"pieces of {entry.size} bytes together", f"{total} bytes")
    entry.sparse = pieces


def _bad(at: int, expected: str, got: str) -> FormatError:
    return FormatError("sparse map", at, expected=expected, got=got)
