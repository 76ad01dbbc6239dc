"""Id maps as text: how a user namespace or an idmapped mount shifts owners."""

from __future__ import annotations

from typing import NamedTuple

from lamina.errors import InvalidArgument

_ID_MAX = 2**32 - 1
_DIGITS = 10


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


def _parse_range(part: str, whole: str) -> IdRange:
    fields = part.split(":")
    if len(fields) != 3 or not all(map(_is_number, fields)):
        raise InvalidArgument("parse id map", whole, hint="write container:host:size[,...]")
    found = IdRange(*(int(field) for field in fields))
    if found.size == 0 or max(found.container, found.host) + found.size > _ID_MAX:
        raise InvalidArgument("parse id map", whole, hint="a range is empty or ends beyond 2^32")
    return found


def _is_number(field: str) -> bool:
    return field.isascii() and field.isdecimal() and len(field) <= _DIGITS
