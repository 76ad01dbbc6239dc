"""Id maps as text -> a user namespace that an idmapped mount can be given."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from lamina.errors import InvalidArgument

_ID_MAX = 2**32 - 1


class IdRange(NamedTuple):
    """`size` ids from `container` on, as stored, appear as those from `host` on."""

    container: int
    host: int
    size: int


def parse_idmap(text: str) -> list[IdRange]:
    """Parse `container:host:size[,container:host:size...]`.

    Raises:
        InvalidArgument: something else, negative or too large numbers, an empty range.
    """
    return [_parse_range(part, text) for part in text.split(",")]


@contextmanager
def mapped_namespace(uidmap: str, gidmap: str) -> Iterator[int]:
    """Yield a descriptor of a user namespace with these maps.

    Raises:
        InvalidArgument: a map cannot be parsed.
        OSError: the kernel refuses to make the namespace or to take the maps.
    """
    uids, gids = parse_idmap(uidmap), parse_idmap(gidmap)
    from lamina.linux.userns import new_user_namespace  # costs nothing without id maps

    fd = new_user_namespace(_lines(uids), _lines(gids))
    try:
        yield fd
    finally:
        os.close(fd)


def _parse_range(part: str, whole: str) -> IdRange:
    fields = part.split(":")
    if len(fields) != 3 or not all(field.isascii() and field.isdecimal() for field in fields):
        raise InvalidArgument("parse id map", whole, hint="write container:host:size[,...]")
    found = IdRange(*(int(field) for field in fields))
    if found.size == 0 or max(found.container, found.host) + found.size > _ID_MAX:
        raise InvalidArgument("parse id map", whole, hint="a range is empty or ends beyond 2^32")
    return found


def _lines(ranges: list[IdRange]) -> str:
    return "".join(f"{r.container} {r.host} {r.size}\n" for r in ranges)
