"""A ZFS pool for the session's tests marked `zfs`, and datasets of each test's own.

A start of the program `zfs` takes a second where these tests run, so hardly anything here does.
"""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lamina.core.mount import Mount
from lamina.linux import zfs
from lamina.mount import mount_all, unmount
from tests.isolation import SESSION_VARIABLE

POOL_BYTES = 1 << 30

_numbers = itertools.count(1)


def pool_name() -> str:
    """Return a name for a pool that the sweep knows as this session's."""
    return f"{Path(os.environ[SESSION_VARIABLE]).name}-pool{next(_numbers)}"


@pytest.fixture(scope="session")
def zpool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The name of a pool on a sparse file, where nothing is mounted."""
    file = tmp_path_factory.mktemp("zpool") / "file"
    with file.open("wb") as made:
        made.truncate(POOL_BYTES)
    name = pool_name()
    options = ("-o", "cachefile=none", "-O", "mountpoint=none", "-O", "atime=off")
    subprocess.run(("zpool", "create", *options, name, file), check=True)
    yield name
    subprocess.run(("zpool", "destroy", "-f", name), check=True)


@contextmanager
def dataset_at(zpool: str, directory: Path) -> Iterator[str]:
    """Mount a new dataset at a directory for the body."""
    name = f"{zpool}/{next(_numbers)}"
    zfs.create(name, {"mountpoint": "legacy"})
    directory.mkdir()
    mount_all([Mount("zfs", name)], directory)
    try:
        yield name
    finally:
        unmount(directory)
        _destroy(name)


def _destroy(name: str) -> None:
    try:
        zfs.destroy(name)
    except OSError:  # a test has failed
        subprocess.run(("zfs", "destroy", "-R", name), check=True)


@pytest.fixture
def dataset(zpool: str, tmp_path: Path) -> Iterator[str]:
    """A dataset of the test's own, mounted at `tmp_path / "snapshotter"`."""
    with dataset_at(zpool, tmp_path / "snapshotter") as name:
        yield name
