"""What readers asked for, what that has cost and what comes first, as files beside the cache."""

from __future__ import annotations

import itertools
import logging
import os
import struct
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina.errors import DataLoss
from lamina.lazy.cost import COST, Cost, CostFile, pack, read_cost, unpack
from lamina.lazy.trace import TRACE, Trace
from lamina.lazy.unit_list import read_units, stretches, write_units
from tests.lazy_layers import MemorySource, make_layer


def test_units_are_noted_once_in_order(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    trace = Trace(path, 10)
    for units in (range(7, 9), range(2, 3), range(6, 9), range(0), range(2, 3)):
        trace.note(units)
    assert path.read_bytes() == struct.pack("<4I", 7, 8, 2, 6)
    trace.close()
    trace.note(range(10))
    again = Trace(path, 10)
    again.note(range(10))
    again.close()
    assert read_units(path, 10) == [7, 8, 2, 6, 0, 1, 3, 4, 5, 9]
    assert path.stat().st_size == 40


def test_a_torn_trace_goes_on_at_whole_numbers(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_bytes(struct.pack("<4I", 3, 99, 3, 1) + b"\7\0")
    assert read_units(path, 10) == [3, 1]
    trace = Trace(path, 10)
    trace.note(range(4))
    trace.close()
    assert read_units(path, 10) == [3, 1, 0, 2]


def test_many_threads_note_each_unit_once(tmp_path: Path) -> None:
    trace = Trace(tmp_path / "trace", 2000)

    def read(step: int) -> None:
        for number in range(0, 2000, step):
            trace.note(range(number, min(2000, number + step)))

    threads = [threading.Thread(target=read, args=(step,)) for step in (1, 2, 3, 5, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    trace.close()
    numbers = struct.unpack("<2000I", (tmp_path / "trace").read_bytes())
    assert sorted(numbers) == list(range(2000))


def test_a_trace_that_cannot_be_written_harms_no_reader(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    layer = make_layer([[5000]] * 3)
    cache = layer.open(layer.create(tmp_path / "layer"))
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, cache._trace._fd)
    os.close(full)
    with caplog.at_level(logging.WARNING):
        assert cache.read(0, 5000) == layer.content[:5000]
    assert "cannot note what is read" in caplog.text
    cache.close()


@given(st.lists(st.integers(0, 300), unique=True))
def test_stretches_keep_the_order(units: list[int]) -> None:
    found = list(stretches(units))
    assert [number for stretch in found for number in stretch] == units
    assert all(a.stop != b.start for a, b in itertools.pairwise(found))


def test_a_list_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "wanted"
    assert read_units(path, 5) == []
    write_units(path, [4, 1])
    write_units(path, iter([2]))
    assert read_units(path, 5) == [2]
    assert list(tmp_path.iterdir()) == [path]


def test_readers_are_noted_and_the_background_is_not(tmp_path: Path) -> None:
    layer = make_layer([[5000]] * 6)
    directory = layer.create(tmp_path / "layer")
    with_reader = layer.open(directory)
    with_reader.prefetch([(8192, 16384)])
    assert read_units(directory / TRACE, 6) == []
    with_reader.read(8192 * 4 + 10, 10)
    with_reader.read(8192, 10)  # which is there
    with_reader.complete()
    with_reader.read(0, 10)  # nobody hears of it any more
    with_reader.close()
    assert read_units(directory / TRACE, 6) == [4, 1]


def test_costs_outlive_the_cache(tmp_path: Path) -> None:
    layer = make_layer([[5000], [6000], [7000]])
    directory = layer.create(tmp_path / "layer")
    assert read_cost(directory) == Cost()
    first = layer.open(directory)
    first.read(0, 5000)
    assert read_cost(directory) == Cost(
        requests=1,
        fetched_bytes=layer.units[0].source_length,
        written_bytes=5000,
        fills=1,
        wait_seconds=first.counters.wait_seconds,
        local_bytes=5000,
        unit_bytes=18000,
        cache_bytes=len(layer.content),
    )
    first.close()

    def fail(offset: int, length: int) -> None:
        raise DataLoss("the disk is gone")

    second = layer.open(directory, MemorySource(layer.blob, fail))
    with pytest.raises(DataLoss):
        second.read(8192, 10)
    second.close()
    third = layer.open(directory)
    third.complete()
    third.close()
    cost = read_cost(directory)
    assert (cost.fills, cost.failures, cost.local_bytes) == (2, 1, 18000)
    assert cost.fetched_bytes == sum(unit.source_length for unit in layer.units)
    assert cost.wait_seconds > first.counters.wait_seconds


def test_a_cost_file_that_is_none_says_nothing(tmp_path: Path) -> None:
    whole = pack(Cost(requests=1, wait_seconds=2.5, cache_bytes=1 << 40))
    assert unpack(whole) == Cost(requests=1, wait_seconds=2.5, cache_bytes=1 << 40)
    assert unpack(whole[:-1]) == unpack(b"x" + whole[1:]) == unpack(b"") == Cost()
    path = tmp_path / COST
    path.write_bytes(b"garbage")
    fd = os.open(path, os.O_RDWR)
    file = CostFile(fd, path)
    file.add({"requests": 2, "unheard_of": 1, "local_bytes": -5})
    os.close(fd)
    assert read_cost(tmp_path) == Cost(requests=2)
