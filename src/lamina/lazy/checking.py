"""Whether the cache of a layer that is complete still has what was verified when it came."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from lamina.core.cancel import check_cancelled
from lamina.lazy.checks import digest_of
from lamina.lazy.layer import DATA, TABLE
from lamina.lazy.table import UnitTable
from lamina.lazy.unit import Check, Piece
from lamina.lazy.view import is_durable

_UNREADABLE = frozenset({errno.EIO, errno.EBADMSG, errno.EUCLEAN})


def damaged_bytes(directory: Path) -> int:
    """Read all of a cache; return how many bytes are in pieces that are not what they were.

    Nothing of it is changed, and whoever uses it is not disturbed. 0 for a cache that is not
    durable: bytes come and go there. What has no digest is taken for whole.

    Raises:
        FormatError: the table is damaged.
        OSError: a file cannot be read.
        Cancelled: see `core.cancel`.
    """
    try:
        fd = os.open(directory / DATA, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return 0
    try:
        # Of the file that is open: when it is emptied, another takes its name.
        if not is_durable(directory) or os.fstat(fd).st_nlink == 0:
            return 0
        table = UnitTable.open(directory / TABLE)
        try:
            return sum(_damaged(fd, table, number) for number in range(len(table)))
        finally:
            table.close()
    finally:
        os.close(fd)


def _damaged(fd: int, table: UnitTable, number: int) -> int:
    check_cancelled()
    return sum(piece.length for piece in table.unit(number).pieces if not _is_whole(fd, piece))


def _is_whole(fd: int, piece: Piece) -> bool:
    if piece.check is Check.NONE:
        return True
    data = bytearray()
    while len(data) < piece.length:
        offset, left = piece.cache_offset + len(data), piece.length - len(data)
        try:
            part = os.pread(fd, left, offset)
        except OSError as error:
            if error.errno not in _UNREADABLE:
                raise
            return False
        if not part:
            return False
        data += part
    return digest_of(piece.check, data) == piece.digest
