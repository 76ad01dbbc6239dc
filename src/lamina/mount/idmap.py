"""Id maps -> a user namespace that an idmapped mount can be given."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from lamina.core.idmap import IdRange, parse_idmap


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


def _lines(ranges: list[IdRange]) -> str:
    return "".join(f"{r.container} {r.host} {r.size}\n" for r in ranges)
