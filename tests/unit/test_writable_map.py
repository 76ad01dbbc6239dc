from __future__ import annotations

import os
import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from lamina.errors import FormatError
from lamina.lazy.writable import sector_map
from lamina.lazy.writable.sector_map import REGION, SectorMap
from lamina.lazy.writable.sector_states import Run, State

LOWER, WRITTEN, ZEROS = State.LOWER, State.WRITTEN, State.ZEROS
SECTORS = 5 * REGION + 100


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "map", os.O_RDWR | os.O_CREAT)
    SectorMap.create(fd, SECTORS)
    yield fd
    os.close(fd)


def _after_power_loss(fd: int, monkeypatch: pytest.MonkeyPatch, *, has_lower: bool) -> SectorMap:
    boot = os.urandom(18).hex()
    monkeypatch.setattr(sector_map, "boot_id", lambda: boot)
    return SectorMap(fd, has_lower=has_lower)


@pytest.mark.parametrize("has_lower", [True, False])
def test_it_is_as_a_list_of_sectors_and_is_read_again_as_it_was(fd: int, has_lower: bool) -> None:
    random.seed(7)
    blank = LOWER if has_lower else ZEROS
    model = bytearray([blank]) * SECTORS
    map = SectorMap(fd, has_lower=has_lower)
    for step in range(300):
        first = random.randrange(SECTORS)
        stop = min(first + random.choice([1, 8, 256, REGION, 3 * REGION]), SECTORS)
        if random.random() < 0.6:
            map.mark_written(first, stop)
            model[first:stop] = bytes([WRITTEN]) * (stop - first)
        else:
            map.mark_zeros(first, stop)
            model[first:stop] = bytes([ZEROS]) * (stop - first)
        if step % 20 == 0:
            fresh = map.begin_flush()
            map.settle(fresh)
            map.sync()
        if step % 50 == 0:
            map.close()
            map = SectorMap(fd, has_lower=has_lower)
        start = random.randrange(SECTORS)
        stop = min(start + 9000, SECTORS)
        assert map.states(start, stop) == bytes(model[start:stop])
    found = b"".join(bytes([run.state]) * (run.stop - run.first) for run in map.runs())
    assert found == model
    states = [run.state for run in map.runs()]
    assert all(one != other for one, other in pairwise(states))
    assert map.written == model.count(WRITTEN)


def test_a_power_loss_takes_back_what_was_not_flushed(
    fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    map = SectorMap(fd, has_lower=True)
    map.mark_zeros(100, 200)
    map.mark_written(0, 10)
    fresh = map.begin_flush()
    map.mark_written(20, 30)  # after the flush was begun: it may not be on the disk
    map.mark_zeros(5, 6)
    map.settle(fresh)
    map.mark_written(150, 160)
    again = SectorMap(fd, has_lower=True)  # a killed process loses nothing
    assert again.states(0, 200) == map.states(0, 200)
    assert again.begin_flush() == [range(20, 30), range(150, 160)]
    lost = _after_power_loss(fd, monkeypatch, has_lower=True)
    assert list(lost.runs())[:6] == [
        Run(0, 5, WRITTEN), Run(5, 6, ZEROS), Run(6, 10, WRITTEN),
        Run(10, 100, LOWER), Run(100, 200, ZEROS), Run(200, SECTORS, LOWER),
    ]  # fmt: skip
    assert lost.begin_flush() == []


def test_a_flush_that_fails_is_done_again(fd: int) -> None:
    map = SectorMap(fd, has_lower=True)
    map.mark_written(0, 10)
    fresh = map.begin_flush()
    map.mark_written(10, 20)
    map.abandon_flush(fresh)
    assert map.begin_flush() == [range(10), range(10, 20)]


def test_a_discard_of_much_takes_no_room(fd: int) -> None:
    map = SectorMap(fd, has_lower=True)
    map.mark_zeros(0, SECTORS)
    assert os.fstat(fd).st_blocks * 512 <= 4 * 4096
    assert list(map.runs()) == [Run(0, SECTORS, ZEROS)]
    map.mark_written(REGION + 1, REGION + 2)
    assert list(SectorMap(fd, has_lower=True).runs()) == [
        Run(0, REGION + 1, ZEROS), Run(REGION + 1, REGION + 2, WRITTEN),
        Run(REGION + 2, SECTORS, ZEROS),
    ]  # fmt: skip


def test_a_loss_is_remembered(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    map = SectorMap(fd, has_lower=True)
    map.note_loss()
    assert SectorMap(fd, has_lower=True).is_lost
    assert _after_power_loss(fd, monkeypatch, has_lower=True).is_lost


@pytest.mark.parametrize(
    ("at", "expected"), [(0, "LaminaSM"), (8, "version 1"), (20, "CRC"), (30, "CRC"), (60, "CRC")]
)
def test_a_damaged_header_is_noticed(fd: int, at: int, expected: str) -> None:
    byte = os.pread(fd, 1, at)[0]
    os.pwrite(fd, bytes([byte ^ 1]), at)
    with pytest.raises(FormatError, match=expected):
        SectorMap(fd, has_lower=True)


def test_a_map_of_another_size_is_noticed(fd: int) -> None:
    os.ftruncate(fd, os.fstat(fd).st_size - 1)
    with pytest.raises(FormatError, match="a file of"):
        SectorMap(fd, has_lower=True)
    os.ftruncate(fd, 10)
    with pytest.raises(FormatError, match="a header"):
        SectorMap(fd, has_lower=True)
