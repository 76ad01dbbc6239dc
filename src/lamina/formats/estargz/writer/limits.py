"""What a layer's tar may say, and no TOC: readers of these blobs would refuse the whole of them."""

from __future__ import annotations

from lamina.errors import FormatError, NotImplementedHere
from lamina.formats.erofs.layout import MAX_NAME, MAX_TARGET, MAX_XATTR_VALUE
from lamina.formats.erofs.xattrs import MAX_XATTRS, encoded_size
from lamina.formats.estargz.directories import MAX_PATH
from lamina.formats.estargz.toc import MAX_ENTRY
from lamina.formats.tar import Entry, Type
from lamina.formats.tar.layer import PREFIX, deleted_name

MAX_LINE = MAX_ENTRY - 4096
"""Bytes of an entry's JSON, without what `place_line` adds."""


def check_entry(entry: Entry, path: bytes, at: int) -> None:
    """Refuse what Linux can have no file of, and what an inode of an image cannot have.

    Args:
        entry: of the tar.
        path: its clean name.
        at: byte of the tar, for errors.

    Raises:
        FormatError: a name, target or attribute is too long or empty.
        NotImplementedHere: its attributes are too many, or the root is no directory.
    """
    if not path and entry.type != Type.DIRECTORY:
        raise _unsaid("a root that is no directory", entry)
    above, _, base = path.rpartition(b"/")
    longest = MAX_NAME + len(PREFIX) * base.startswith(PREFIX)
    if len(path) > MAX_PATH or len(base) > longest or not _are_short(above):
        expected = f"paths of at most {MAX_PATH} bytes, names of at most {MAX_NAME}"
        raise FormatError("tar", at, expected=expected, got=repr(path[: MAX_NAME + 1]))
    deleted_name(base, at)
    if entry.type == Type.SYMLINK and not 0 < len(entry.linkname) <= MAX_TARGET:
        expected = f"a target of 1 to {MAX_TARGET} bytes"
        raise FormatError("tar", at, expected=expected, got=f"{len(entry.linkname)} bytes")
    for name, value in entry.xattrs.items():
        if not 0 < len(name) <= MAX_NAME or b"\0" in name or len(value) > MAX_XATTR_VALUE:
            got = f"{len(value)} bytes of {name[:MAX_NAME]!r}"
            expected = "attributes of less than 64 KiB, with names of 1 to 255 bytes"
            raise FormatError("tar", at, expected=expected, got=got)
    if encoded_size(entry.xattrs) > MAX_XATTRS:
        raise _unsaid("so many bytes of attributes", entry)


def check_line(entry: Entry, line: bytes) -> None:
    """Refuse an entry whose JSON is longer than readers take.

    Raises:
        NotImplementedHere: it is; its attributes make it so.
    """
    if len(line) > MAX_LINE:
        raise _unsaid("so many bytes of attributes", entry)


def _unsaid(what: str, entry: Entry) -> NotImplementedHere:
    return NotImplementedHere(f"describe {what} in a TOC", repr(entry.name[:200]))


def _are_short(path: bytes) -> bool:
    return len(path) <= MAX_NAME or all(len(name) <= MAX_NAME for name in path.split(b"/"))
