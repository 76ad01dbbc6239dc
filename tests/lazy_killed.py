"""Kills a process that fills a cache, over and over; `python -m tests.lazy_killed DIRECTORY SEED`.

A process of its own, because it forks: it has no threads then. After each kill the cache has to be
right: what is said to be there has its bytes. Prints how many kills there were.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

from lamina.lazy.cache import LayerCache
from lamina.lazy.policy import FillPolicy
from tests.lazy_layers import ALONE, Layer, MemorySource, make_layer, padded

LENGTHS = [[5000], [3, 700, 4096], [1], [9000], [60_000], [12_288, 1]]
POLICY = FillPolicy(request_bytes=8000, background_bytes=8000, silence_seconds=0.0)
KILLS_AT_RANDOM = 60


class Killer:
    """Ends this process at the Nth write: before it, half-way through, or after it."""

    def __init__(self, number: int) -> None:
        self.left, self.when = divmod(number, 3)
        self.pwrite, self.pwritev = os.pwrite, os.pwritev

    def write(self, fd: int, data: bytes, offset: int) -> int:
        self._step(lambda: self.pwrite(fd, data[: len(data) // 2], offset))
        written = self.pwrite(fd, data, offset)
        self._end(2)
        return written

    def writev(self, fd: int, buffers: list[memoryview], offset: int) -> int:
        half = buffers[0][: len(buffers[0]) // 2]
        self._step(lambda: self.pwrite(fd, half, offset))
        written = self.pwritev(fd, buffers, offset)
        self._end(2)
        return written

    def _step(self, half: object) -> None:
        self._end(0)
        if self.left == 0 and self.when == 1 and callable(half):
            half()
            self._end(1)

    def _end(self, when: int) -> None:
        if self.left == 0 and self.when == when:
            os.kill(os.getpid(), signal.SIGKILL)
        if when == 2:
            self.left -= 1


def fill(layer: Layer, directory: Path, pause: float = 0.0) -> None:
    source = MemorySource(layer.blob, lambda offset, length: time.sleep(pause))
    cache = layer.open(directory, source, POLICY)
    cache.fill(cache.size // 2, cache.size)
    cache.complete()
    cache.close()


def check(layer: Layer, directory: Path) -> None:
    """Check what a cache has that was left by a kill, and that it is complete after all."""
    cache = layer.open(directory, None, POLICY)
    for unit in layer.units:
        start, stop = unit.cache_offset, unit.cache_offset + padded(unit.cache_length)
        if cache.is_local(start, stop):
            found = os.pread(cache.data_fd, stop - start, start)
            assert found == layer.content[start:stop], f"wrong bytes at {start}"
    cache.close()


def killed_at_step(layer: Layer, directory: Path, number: int) -> bool:
    process = os.fork()
    if not process:
        killer = Killer(number)
        os.pwrite = killer.write  # type: ignore[assignment]
        os.pwritev = killer.writev  # type: ignore[assignment]
        fill(layer, directory)
        os._exit(0)
    return _was_killed(process)


def killed_at_random(layer: Layer, directory: Path, seconds: float) -> bool:
    process = os.fork()
    if not process:
        fill(layer, directory, 0.001)
        os._exit(0)
    time.sleep(seconds)
    os.kill(process, signal.SIGKILL)
    return _was_killed(process)


def _was_killed(process: int) -> bool:
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert code in {0, -signal.SIGKILL}, f"the process ended with {code}"
    return code != 0


def finish(layer: Layer, directory: Path) -> None:
    """Fill what is left in a process of its own, since it starts threads."""
    process = os.fork()
    if not process:
        cache: LayerCache = layer.open(directory, None, POLICY)
        assert cache.read(0, cache.size) == layer.content
        cache.close()
        os._exit(0)
    assert not _was_killed(process)


def main(root: Path, seed: int) -> None:
    chance = random.Random(seed)
    layer = make_layer(LENGTHS, ALONE)
    kills = number = 0
    going_on = True
    while going_on:
        directory = layer.create(root / f"step-{number}")
        going_on = killed_at_step(layer, directory, number)
        kills += going_on
        check(layer, directory)
        finish(layer, directory)
        number += 1
    directory = layer.create(root / "random")
    for attempt in range(KILLS_AT_RANDOM):
        killed = killed_at_random(layer, directory, chance.uniform(0, 0.03))
        kills += killed
        check(layer, directory)
        if not killed:
            finish(layer, directory)
            directory = layer.create(root / f"random-{attempt}")
    finish(layer, directory)
    print(kills)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
