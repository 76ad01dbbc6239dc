"""Lazy layers on a disk that loses what was written to it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import pytest

from lamina.lazy.launch import LazyWorker
from lamina.lazy.served import GateName
from lamina.mount.unmounting import unmount_recursive
from tests.kernel.test_lazy_worker import GATES
from tests.lazy_layers import ALONE, FACTORY, IMPATIENT, Layer, make_layer
from tests.lazy_root import SECONDS, Lazy, attempts

pytestmark = [pytest.mark.root, pytest.mark.loop]

ROOM = 3 << 20
"""Bytes that the disk keeps; an ext4 of 64 MiB takes another MiB or so."""


class FailingDisk:
    """An ext4 on a loop device whose file cannot grow beyond some size, until `mend`."""

    def __init__(self, memory: Path, path: Path) -> None:
        self._memory = memory
        self.path = path

    def mend(self) -> None:
        subprocess.run(["mount", "-o", "remount,size=100m", self._memory], check=True)


@contextmanager
def failing_disk(parent: Path) -> Iterator[FailingDisk]:
    memory, path = parent / "memory", parent / "disk"
    memory.mkdir()
    path.mkdir()
    with ExitStack() as mounted:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100m", "none", memory], check=True)
        mounted.callback(unmount_recursive, memory)
        image = memory / "image"
        with image.open("wb") as file:
            file.truncate(64 << 20)
        # Without a journal, so that what is lost is data and the filesystem goes on.
        options = ["-O", "^has_journal", "-E", "lazy_itable_init=0,nodiscard", "-m", "0"]
        subprocess.run(["mkfs.ext4", "-q", *options, image], check=True)
        options = ["-o", "loop,errors=continue"]
        subprocess.run(["mount", "-t", "ext4", *options, image, path], check=True)
        mounted.callback(unmount_recursive, path)
        os.sync()
        size = image.stat().st_blocks * 512 + ROOM
        subprocess.run(["mount", "-o", f"remount,size={size}", memory], check=True)
        yield FailingDisk(memory, path)


def forget_pages(path: Path) -> None:
    """Have the kernel drop what it has in memory of a file, as when memory is short."""
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


@pytest.fixture(scope="module")
def layer() -> Layer:
    return make_layer([[200_000]] * 40, ALONE)


def test_what_the_disk_has_lost_is_not_believed(layer: Layer, tmp_path: Path) -> None:
    with failing_disk(tmp_path) as disk:
        cache = layer.open(layer.create(disk.path / "layer"), None, IMPATIENT)
        with closing(cache):
            cache.fill(0, cache.size)
            with pytest.raises(OSError, match=r"Input/output error|No space left"):
                cache.sync()
            assert not cache.is_complete
        # What a worker would leave that is killed just before it notes the failure.
        states = (disk.path / "layer/map").read_bytes()
        (disk.path / "layer/map").write_bytes(states[:128] + b"\3" * len(layer.units))
        with closing(layer.open(disk.path / "layer", None, IMPATIENT)) as cache:
            cache.fill(0, cache.size)
            assert 0 < cache.counters.kept_units < len(layer.units)
            disk.mend()
            with suppress(OSError):  # what was lost before that is told once
                cache.complete()
            cache.complete()
            assert cache.is_durable
            forget_pages(cache.data_path)
            assert cache.read(0, cache.size) == layer.content


@pytest.mark.parametrize("gate", GATES)
def test_readers_are_guarded_until_everything_is_synced(
    layer: Layer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gate: GateName
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    with failing_disk(tmp_path) as disk:
        lazy = Lazy(disk.path)
        try:
            (tmp_path / "blob").write_bytes(layer.blob)
            (disk.path / "layer.blob").symlink_to(tmp_path / "blob")
            directory = layer.create(disk.path / "layer")
            path = lazy.worker.add(directory, FACTORY, gate)
            log = lazy.worker.directory / "worker.log"
            with path.open("rb") as file:
                assert file.read() == layer.content
                wait_for_failed_sync(log)
                for _ in range(3):  # it is read again, and lost again
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                    forget_pages(directory / "data")
                    assert os.pread(file.fileno(), len(layer.content), 0) == layer.content
                assert lazy.worker.add(directory, FACTORY, gate) == path
                disk.mend()
                complete(lazy.worker, directory)
                forget_pages(directory / "data")
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                assert os.pread(file.fileno(), len(layer.content), 0) == layer.content
            assert lazy.worker.add(directory, FACTORY, gate) == directory / "data"
            lazy.worker.remove(directory)
        finally:
            lazy.kill_all()


def wait_for_failed_sync(log: Path) -> None:
    for _ in attempts():
        if "cannot complete" in log.read_text():
            return
    raise AssertionError(log.read_text())


def complete(worker: LazyWorker, directory: Path) -> None:
    """Complete a layer on a disk that works; what was lost before may still be told once."""
    for _ in attempts():
        try:
            worker.wait(directory, SECONDS)
        except Exception as error:
            assert "Input/output error" in str(error) or "No space" in str(error)
        else:
            return
