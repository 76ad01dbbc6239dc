"""Containers that run from lazy images while what serves them is killed or replaced."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lamina.lazy.launch import LazyWorker
from tests.faulty_registry import FaultyRegistry, faulty_registry
from tests.fixtures_containers import Machine
from tests.fixtures_stargz import GATES, annotated, end_lazy, noise, stargz_layer, write_config
from tests.images import ImageFiles, image

pytestmark = [
    pytest.mark.root,
    pytest.mark.overlay,
    pytest.mark.erofs,
    pytest.mark.runtime,
]

SECONDS = 60.0
KILLS = int(os.environ.get("LAMINA_TEST_KILLS", "6"))
"""Each comes with a megabyte of the image."""
FINISH_SECONDS = 120.0 + 2 * KILLS
SUMS = ("/bin/busybox", "find", "/bin", "/data", "-type", "f", "-exec", "/bin/busybox", "sha256sum")


@dataclass
class Checksums:
    """A container that reads every byte of its lazy image.

    Attributes:
        process: the command that runs it.
        worker: of the root.
        layers: the caches of its layers.
        expected: path to digest, of each file in the image.
    """

    process: subprocess.Popen[bytes]
    worker: LazyWorker
    layers: list[Path]
    expected: dict[str, str]

    def local(self) -> int:
        """Count the units that are local."""
        return sum(map(_local_units, self.layers))

    def grow(self, beyond: int) -> int:
        """Wait until more units are local than `beyond`, and return how many."""
        deadline = time.monotonic() + SECONDS
        while (found := self.local()) <= beyond:
            assert time.monotonic() < deadline, f"no more than {beyond} units come"
            assert self.process.poll() is None, f"it has ended with {beyond} units"
            time.sleep(0.005)
        return found

    def finish(self) -> None:
        """Wait for the container's end; every byte that it has read is right."""
        said, errors = self.process.communicate(timeout=FINISH_SECONDS)
        assert (self.process.returncode, errors) == (0, b"")
        lines = (line.split("  ") for line in said.decode().splitlines())
        assert {path: digest for digest, path in lines} == self.expected


def _local_units(layer: Path) -> int:
    return (layer / "map").read_bytes()[128:].count(1)


@functools.cache
def made(megabytes: int) -> tuple[ImageFiles, dict[str, str]]:
    """Make an image with busybox and so many megabytes; return also each file's digest."""
    busybox = Path(shutil.which("busybox") or "").read_bytes()
    small = {f"data/s/{n}": noise(n * 200, n) for n in range(100)}
    big = {f"data/{n}": noise(1_000_001, n) for n in range(megabytes)}
    parts = [{"bin/busybox": busybox} | small, big]
    files = image(*(stargz_layer(part, 0o755) for part in parts))
    digests = {f"/{p}": hashlib.sha256(d).hexdigest() for part in parts for p, d in part.items()}
    return files, digests


@pytest.fixture
def slow() -> Iterator[FaultyRegistry]:
    """A registry that takes its time, so that there is some in which to kill."""
    with faulty_registry() as registry:
        registry.bytes_per_second = 8 << 20
        yield registry


@pytest.fixture
def checksum(
    machine: Machine, slow: FaultyRegistry, tmp_path: Path
) -> Iterator[Callable[[str, int], Checksums]]:
    def start(gate: str, megabytes: int) -> Checksums:
        files, expected = made(megabytes)
        slow.add_manifest("1", annotated(files))
        for data in files.blobs:
            slow.add_blob(data)
        options = ("--config", write_config(tmp_path, gate))
        lazy = ("--snapshotter", "stargz")
        ref = f"{slow.host}/test:1"
        machine.command.run(*options, "images", "pull", "--plain-http", *lazy, ref)
        argv = ("run", "--rm", *lazy, ref, machine.id, *SUMS, "{}", "+")
        process = machine.command.start(*options, *argv)
        worker = LazyWorker(machine.root / "io.containerd.snapshotter.v1.stargz")
        layers = [Path(layer.directory) for layer in worker.status().layers]
        return Checksums(process, worker, layers, expected)

    yield start
    end_lazy(machine.root)


@pytest.mark.timeout(300 + 20 * KILLS)
@pytest.mark.parametrize("gate", GATES)
def test_worker_is_killed_while_a_container_reads_its_whole_image(
    checksum: Callable[[str, int], Checksums], slow: FaultyRegistry, gate: str
) -> None:
    running = checksum(gate, max(12, KILLS))
    units = running.local()
    victims = set()
    for _ in range(KILLS):
        running.grow(units)
        slow.flows.clear()  # else all may have come before the last kill, where that takes long
        try:
            victim = running.worker.status().pid
            os.kill(victim, signal.SIGKILL)
        finally:
            slow.flows.set()
        victims.add(victim)
        units = running.local()
    assert len(victims) == KILLS
    running.finish()


@pytest.mark.parametrize("gate", GATES)
def test_worker_is_upgraded_under_the_reads_of_a_container(
    checksum: Callable[[str, int], Checksums], slow: FaultyRegistry, gate: str
) -> None:
    running = checksum(gate, 12)
    running.grow(running.local())
    before = running.worker.status().pid
    slow.flows.clear()
    try:
        assert slow.waited.wait(SECONDS)  # somebody reads what has not come
        running.worker.upgrade()
        deadline = time.monotonic() + SECONDS
        while running.worker.status().pid == before:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert running.process.poll() is None
    finally:
        slow.flows.set()
    running.finish()
