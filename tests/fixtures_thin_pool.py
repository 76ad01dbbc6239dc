"""A thin pool of the test's own, on loop devices; for tests marked `dm`."""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.isolation import SESSION_VARIABLE, device_names, remove_devices

SECTOR = 512
MIB = 1 << 20
DATA_BYTES = 256 * MIB
METADATA_BYTES = 4 * MIB
BLOCK_SECTORS = 128
NO_LOW_WATER = 0

_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class ThinPool:
    """An active thin pool on two loop devices.

    Attributes:
        name: of its device. What is made on it is to be called `NAME-...`: that is removed before
            the pool is.
        data: the loop device with the data.
        metadata: the loop device with the metadata.
        data_bytes: the size of the data device.
    """

    name: str
    data: str
    metadata: str
    data_bytes: int

    @property
    def path(self) -> Path:
        """Its device node."""
        return Path("/dev/mapper", self.name)

    def table(self) -> str:
        """Return its table as `dmsetup` takes it."""
        sectors = self.data_bytes // SECTOR
        arguments = f"{self.metadata} {self.data} {BLOCK_SECTORS} {NO_LOW_WATER}"
        return f"0 {sectors} thin-pool {arguments} 1 skip_block_zeroing"


def device_name(what: str) -> str:
    """Return a name for a device that the sweep knows as this session's."""
    return f"{Path(os.environ[SESSION_VARIABLE]).name}-{what}{next(_numbers)}"


@contextmanager
def loop_device(file: Path, size: int) -> Iterator[str]:
    """Make a sparse file of `size` bytes, or take the one there is, as a loop device."""
    if not file.exists():
        with file.open("wb") as made:
            made.truncate(size)
    argv = ("losetup", "--find", "--show", file)
    device = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(("losetup", "--detach", device), check=True)


@contextmanager
def active_pool(
    directory: Path, *, data_bytes: int = DATA_BYTES, metadata_bytes: int = METADATA_BYTES
) -> Iterator[ThinPool]:
    """Make a pool whose files are in `directory`, or activate the one that is there."""
    name = device_name("pool")
    with ExitStack() as stack:
        data = stack.enter_context(loop_device(directory / "pool.data", data_bytes))
        metadata = stack.enter_context(loop_device(directory / "pool.metadata", metadata_bytes))
        pool = ThinPool(name, data, metadata, data_bytes)
        stack.callback(_remove, name)
        subprocess.run(("dmsetup", "create", name, "--table", pool.table()), check=True)
        yield pool


def _remove(pool: str) -> None:
    remove_devices(lambda name: name == pool or name.startswith(f"{pool}-"))
    left = [name for name in device_names() if name.startswith(pool)]
    assert not left, f"still in use: {', '.join(left)}"


@pytest.fixture
def thin_pool(tmp_path: Path) -> Iterator[ThinPool]:
    """An active thin pool, removed after the test with everything that is on it."""
    with active_pool(tmp_path) as pool:
        yield pool
    for file in tmp_path.glob("pool.*"):
        file.unlink()  # in the virtual machine it would stay in memory until the last test's end
