"""zpool and zfs: pools, and mounting a pool's own dataset; zpool(8), zfs(8).

All else is asked of `lamina.linux.zfs`, which starts no program.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from lamina.errors import FormatError, ToolError
from lamina.tools.run import run

_SECONDS = 300.0
_FIELDS = ("name", "guid", "size", "allocated", "free", "fragmentation", "capacity", "health")


class Pool(NamedTuple):
    """An imported pool; sizes are in bytes.

    Attributes:
        name: its name.
        guid: its number, which no other pool has.
        size: of all of it.
        allocated: what is in use.
        free: what is not.
        fragmentation: of what is free, in percent; None where ZFS does not say.
        capacity: in percent, what is in use.
        health: `ONLINE`, or what is the matter.
    """

    name: str
    guid: int
    size: int
    allocated: int
    free: int
    fragmentation: int | None
    capacity: int
    health: str


def find_pool(name: str) -> Pool | None:
    """Return the imported pool of that name; None where there is none."""
    return next((pool for pool in pools() if pool.name == name), None)


def pools() -> list[Pool]:
    """Return the imported pools."""
    done = run(["zpool", "list", "-H", "-p", "-o", ",".join(_FIELDS)], timeout=_SECONDS)
    return parse_pools(done.stdout)


def create_pool(name: str, file: Path, mountpoint: Path, properties: Mapping[str, str]) -> None:
    """Make a pool of one file, and mount its dataset.

    Args:
        name: the pool's, and its dataset's.
        file: is there, has the pool's size, and nothing of a pool in it.
        mountpoint: is made where it is missing.
        properties: of the dataset.
    """
    options = [word for item in properties.items() for word in ("-O", "=".join(item))]
    argv = ["zpool", "create", "-o", "cachefile=none", *options]
    run([*argv, "-m", str(mountpoint), name, str(file)], timeout=_SECONDS)


def has_pool(file: Path) -> bool:
    """Tell whether a file has a pool that could be imported."""
    try:
        done = run(["zpool", "import", "-d", str(file)], timeout=_SECONDS)
    except ToolError as error:
        if error.code != 1:
            raise
        return False
    return bool(done.stdout.strip())


def import_pool(name: str, file: Path) -> None:
    """Import a pool from its file; nothing of it is mounted."""
    argv = ["zpool", "import", "-N", "-o", "cachefile=none", "-d", str(file), name]
    run(argv, timeout=_SECONDS)


def export_pool(name: str) -> None:
    """Let go of a pool, after unmounting its datasets."""
    run(["zpool", "export", name], timeout=_SECONDS)


def destroy_pool(name: str) -> None:
    """Unmount its datasets by force, and destroy a pool with all that is in it."""
    run(["zpool", "destroy", "-f", name], timeout=_SECONDS)


def mount(dataset: str) -> None:
    """Mount a dataset at its mount point."""
    run(["zfs", "mount", dataset], timeout=_SECONDS)


def parse_pools(output: bytes) -> list[Pool]:
    """Parse what `zpool list -H -p` prints of the fields of `Pool`.

    Raises:
        FormatError: it is something else.
    """
    return [_pool(line.split("\t"), line) for line in output.decode().splitlines()]


def _pool(fields: list[str], line: str) -> Pool:
    try:
        name, guid, size, allocated, free, fragmentation, capacity, health = fields
        return Pool(
            name=name,
            guid=int(guid),
            size=_number(size),
            allocated=_number(allocated),
            free=_number(free),
            fragmentation=None if fragmentation == "-" else int(fragmentation.rstrip("%")),
            capacity=_number(capacity.rstrip("%")),
            health=health,
        )
    except ValueError as error:
        expected = f"the fields {', '.join(_FIELDS)}"
        raise FormatError("zpool's list", 0, expected=expected, got=repr(line)) from error


def _number(text: str) -> int:
    """Return a number; 0 for that of a pool that has failed."""
    return 0 if text == "-" else int(text)
