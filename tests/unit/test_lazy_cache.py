"""One layer's cache: what is fetched, when it counts as there, and what survives."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamina.core.cancel import CancelToken, cancellable, current_deadline
from lamina.errors import (
    AlreadyExists,
    Cancelled,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    FormatError,
    Internal,
    NotFound,
    OutOfRange,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)
from lamina.lazy import cache as cache_module
from lamina.lazy import fetching, refusals
from lamina.lazy.cache import LayerCache
from lamina.lazy.checking import damaged_bytes
from lamina.lazy.policy import FillPolicy
from lamina.lazy.unit import BLOCK, Check, Codec
from lamina.lazy.workers import Workers
from tests.lazy_layers import ALONE, IMPATIENT, Layer, MemorySource, make_layer, padded

NO_AHEAD = replace(IMPATIENT, readahead_most=0)
SMALL = make_layer([[5000], [3, 700, 4096], [1], [9000], [4096]], ALONE)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return SMALL.create(tmp_path / "layer")


@contextmanager
def opened(
    layer: Layer,
    directory: Path,
    source: MemorySource | None = None,
    policy: FillPolicy = NO_AHEAD,
) -> Iterator[LayerCache]:
    cache = layer.open(directory, source, policy)
    try:
        yield cache
    finally:
        cache.close()


def on_disk(directory: Path) -> bytes:
    return (directory / "data").read_bytes()


def run_threads(*works: Callable[[], object]) -> list[BaseException]:
    errors: list[BaseException] = []

    def guarded(work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def close_at_last(cache: LayerCache) -> None:
    """Close a cache whose last request is about to end."""
    while not cache._let_go:
        cache.close()


def in_another_boot(monkeypatch: pytest.MonkeyPatch, name: str = "another") -> None:
    monkeypatch.setattr(cache_module, "boot_id", lambda: name)


def test_nothing_is_there_at_first(directory: Path) -> None:
    with opened(SMALL, directory) as cache:
        assert cache.size == len(SMALL.content) == (directory / "data").stat().st_size
        assert (directory / "data").stat().st_blocks == 0
        assert not cache.is_complete
        assert not cache.is_local(0, 1)
        assert cache.local_bytes == 0
        assert not cache.doubts


def test_any_read_is_right(directory: Path) -> None:
    for start in range(0, len(SMALL.content), 1777):
        with opened(SMALL, directory) as cache:
            stop = min(start + 6000, len(SMALL.content))
            assert cache.read(start, stop - start) == SMALL.content[start:stop]
            assert cache.is_local(start, stop)


def test_only_what_is_missing_is_fetched(directory: Path) -> None:
    source = MemorySource(SMALL.blob)
    with opened(SMALL, directory, source) as cache:
        cache.fill(0, 1)
        cache.fill(0, 8192)
        first, second = SMALL.units[0], SMALL.units[1]
        assert source.asked == [(0, first.source_length)]
        cache.fill(0, len(SMALL.content))
        rest = len(SMALL.blob) - second.source_offset
        assert source.asked[1:] == [(second.source_offset, rest)]
        assert cache.is_complete
        assert cache.fetched_bytes == len(SMALL.blob)
        assert cache.local_bytes == cache.unit_bytes == sum(u.cache_length for u in SMALL.units)
        assert cache.counters.requests == 2
    assert on_disk(directory) == SMALL.content


def test_a_range_outside_of_the_cache_is_refused(directory: Path) -> None:
    with opened(SMALL, directory) as cache:
        for start, stop in [(-1, 1), (0, cache.size + 1)]:
            with pytest.raises(OutOfRange):
                cache.fill(start, stop)
        with pytest.raises(OutOfRange):
            cache.read(0, -1)
        cache.fill(5, 5)
        assert cache.counters.requests == 0


def test_requests_are_bounded_and_span_small_gaps(tmp_path: Path) -> None:
    layer = make_layer([[BLOCK]] * 10, [Codec.NONE], header=100)
    length = layer.units[0].source_length
    source = MemorySource(layer.blob)
    policy = replace(NO_AHEAD, request_bytes=3 * length)
    with opened(layer, layer.create(tmp_path / "a"), source, policy) as cache:
        cache.fill(0, cache.size)
    assert sorted(source.asked) == [
        (0, 3 * length), (3 * length, 3 * length), (6 * length, 3 * length), (9 * length, length)
    ]  # fmt: skip

    every_other = Layer(layer.blob, layer.units[::2], layer.content)
    for gap, requests in [(length, 1), (length - 1, 5)]:
        source = MemorySource(layer.blob)
        policy = replace(NO_AHEAD, gap_bytes=gap)
        with opened(every_other, every_other.create(tmp_path / f"{gap}"), source, policy) as cache:
            cache.fill(0, cache.size)
            assert len(source.asked) == requests
            assert cache.is_complete


def test_a_unit_bigger_than_a_request_is_requested_alone(tmp_path: Path) -> None:
    layer = make_layer([[BLOCK], [50_000], [BLOCK]], [Codec.NONE])
    source = MemorySource(layer.blob)
    policy = replace(NO_AHEAD, request_bytes=10_000)
    with opened(layer, layer.create(tmp_path / "a"), source, policy) as cache:
        cache.fill(0, cache.size)
    assert len(source.asked) == 3
    assert on_disk(tmp_path / "a") == layer.content


def test_many_threads_fetch_each_unit_once(tmp_path: Path) -> None:
    layer = make_layer([[BLOCK]] * 20)
    directory = layer.create(tmp_path / "layer")
    together = threading.Barrier(8)

    def hook(offset: int, length: int) -> None:
        while cache.counters.waits < 7:
            time.sleep(0.001)

    source = MemorySource(layer.blob, hook)
    with opened(layer, directory, source) as cache:

        def read() -> None:
            together.wait()
            assert cache.read(0, cache.size) == layer.content

        assert run_threads(*[read] * 8) == []
        assert sum(length for _, length in source.asked) == len(layer.blob)
        assert len(source.asked) == 1


def test_what_pads_a_unit_is_zeros_whatever_was_there(directory: Path) -> None:
    (directory / "data").write_bytes(b"\xff" * len(SMALL.content))
    with opened(SMALL, directory) as cache:
        cache.fill(0, cache.size)
    assert on_disk(directory) == SMALL.content


def test_a_unit_of_many_pieces(tmp_path: Path) -> None:
    layer = make_layer([[10] * 1500], header=3)
    directory = layer.create(tmp_path / "layer")
    (directory / "data").write_bytes(b"\xff" * len(layer.content))
    with opened(layer, directory) as cache:
        assert cache.read(0, cache.size) == layer.content


def test_short_writes_are_completed(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stingy(fd: int, buffers: list[memoryview], offset: int) -> int:
        return os.pwrite(fd, buffers[0][:1000], offset)

    monkeypatch.setattr("lamina.lazy.fetching.os.pwritev", stingy)
    with opened(SMALL, directory) as cache:
        assert cache.read(0, cache.size) == SMALL.content


def test_wrong_bytes_are_told_to_all_who_wait_and_never_written(directory: Path) -> None:
    damaged = bytearray(SMALL.blob)
    third = SMALL.units[2]
    damaged[third.source_offset + 10 : third.source_offset + 14] = b"oops"
    source = MemorySource(bytes(damaged), lambda offset, length: time.sleep(0.05))
    with opened(SMALL, directory, source) as cache:
        errors = run_threads(*[lambda: cache.fill(third.cache_offset, cache.size)] * 3)
        assert [type(error) for error in errors] == [DataLoss] * 3
        assert len({id(error) for error in errors}) == 3
        assert all(error.__cause__ is not None for error in errors)
        assert f"bytes {third.source_offset} to" in str(errors[0])
        assert not cache.is_local(third.cache_offset, third.cache_offset + 1)
        cache.fill(third.cache_offset + BLOCK, cache.size)
        assert on_disk(directory)[third.cache_offset :][:BLOCK] == bytes(BLOCK)

        source.data = SMALL.blob
        assert cache.read(0, cache.size) == SMALL.content


def test_a_neighbour_of_damage_is_unharmed(directory: Path) -> None:
    damaged = bytearray(SMALL.blob)
    damaged[SMALL.units[0].source_offset + 700] ^= 1
    with opened(SMALL, directory, MemorySource(bytes(damaged))) as cache:
        with pytest.raises(DataLoss, match="sha256:"):
            cache.fill(0, cache.size)
        start = SMALL.units[1].cache_offset
        assert cache.is_local(start, cache.size)
        assert cache.counters.failures == 1


@pytest.mark.parametrize("kind", [Unavailable, Unauthenticated, NotFound, DeadlineExceeded])
def test_a_source_that_fails_at_once_is_asked_again_at_the_next_read(
    directory: Path, kind: type[Unavailable], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "SHORTEST_WAIT", 60)

    def fail(offset: int, length: int) -> None:
        raise kind("fetch", "there", hint="try later")

    source = MemorySource(SMALL.blob, fail)
    with opened(SMALL, directory, source) as cache:
        for _ in range(2):
            with pytest.raises(kind, match=r"there.*try later"):
                cache.fill(0, cache.size)
        assert len(source.asked) == 2
        source.hook = lambda offset, length: None
        assert cache.read(0, cache.size) == SMALL.content


def test_a_bug_in_a_source_is_told_too(directory: Path) -> None:
    def fail(offset: int, length: int) -> None:
        raise RuntimeError("bug")

    source = MemorySource(SMALL.blob, fail)
    expected = pytest.raises(Internal, match="RuntimeError: bug")
    with opened(SMALL, directory, source) as cache, expected:
        cache.fill(0, 1)


def test_a_source_of_another_size_is_refused(directory: Path) -> None:
    source = MemorySource(SMALL.blob + b"x")
    expected = pytest.raises(DataLoss, match="bytes, the layer")
    with opened(SMALL, directory, source) as cache, expected:
        cache.fill(0, 1)


def test_whoever_joins_a_request_has_all_of_its_own_time(directory: Path) -> None:
    def fail_once(offset: int, length: int) -> None:
        if len(source.asked) == 1:
            while not cache.counters.waits:
                time.sleep(0.001)
            raise DeadlineExceeded("fetch a part of a blob")

    source = MemorySource(SMALL.blob, fail_once)
    with opened(SMALL, directory, source) as cache:
        errors = run_threads(*[lambda: cache.fill(0, 1)] * 2)
        assert [type(error) for error in errors] == [DeadlineExceeded]
        assert cache.is_local(0, 1)
    assert len(source.asked) == 2


def test_nobody_waits_beyond_the_deadline(directory: Path) -> None:
    go_on = threading.Event()
    deadlines = []

    def hang(offset: int, length: int) -> None:
        deadlines.append(current_deadline())
        go_on.wait()

    source = MemorySource(SMALL.blob, hang)
    policy = replace(NO_AHEAD, fill_seconds=0.05)
    cache = SMALL.open(directory, source, policy)
    try:
        errors = run_threads(*[lambda: cache.fill(0, cache.size)] * 3)
        assert [type(error) for error in errors] == [DeadlineExceeded] * 3
        assert len(source.asked) == 1
        assert deadlines[0] is not None
    finally:
        go_on.set()
        close_at_last(cache)
    with opened(SMALL, directory) as again:
        assert again.read(0, again.size) == SMALL.content


def test_after_a_wait_in_vain_readers_are_refused_until_the_source_gives(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "SHORTEST_WAIT", 0)

    def fail(offset: int, length: int) -> None:
        time.sleep(1)
        raise Unavailable("fetch", hint="try later")

    source = MemorySource(SMALL.blob, fail)
    with opened(SMALL, directory, source) as cache:
        for unit in (SMALL.units[1], SMALL.units[3]):
            with pytest.raises(Unavailable, match="try later"):
                cache.fill(unit.cache_offset, unit.cache_offset + 1)
        assert len(source.asked) == 1
        source.hook = lambda offset, length: None
        cache.prefetch([(0, 1)])
        assert cache.read(0, cache.size) == SMALL.content


def test_a_cache_with_a_request_that_hangs_keeps_its_files(directory: Path) -> None:
    go_on = threading.Event()

    def hang(offset: int, length: int) -> None:
        go_on.wait()

    cache = SMALL.open(
        directory, MemorySource(SMALL.blob, hang), replace(NO_AHEAD, fill_seconds=0.05)
    )
    with pytest.raises(DeadlineExceeded):
        cache.fill(0, 1)
    cache.close()
    with pytest.raises(FailedPrecondition, match="has it open"):
        SMALL.open(directory)
    go_on.set()
    close_at_last(cache)
    with opened(SMALL, directory) as again:
        assert again.read(0, again.size) == SMALL.content


def test_a_full_disk_loses_nothing(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with opened(SMALL, directory) as cache:
        cache.fill(0, 1)
        with monkeypatch.context() as patch:
            patch.setattr("lamina.lazy.fetching.os.pwritev", full)
            with pytest.raises(ResourceExhausted, match="free space"):
                cache.fill(0, cache.size)
            assert cache.is_local(0, 1)
        with monkeypatch.context() as patch:
            patch.setattr("lamina.lazy.unit_map.os.pwrite", full)
            with pytest.raises(ResourceExhausted, match="No space left"):
                cache.fill(0, cache.size)
            assert not cache.is_local(8192, 8193)
        assert cache.read(0, cache.size) == SMALL.content


def test_what_is_there_is_there_after_closing(directory: Path) -> None:
    with opened(SMALL, directory) as cache:
        cache.fill(0, 8193)
    source = MemorySource(SMALL.blob)
    with opened(SMALL, directory, source) as cache:
        assert cache.is_local(0, 8193)
        assert not cache.is_local(0, cache.size)
        cache.fill(0, 8193)
        assert source.asked == []


def test_a_complete_cache_needs_no_source(directory: Path) -> None:
    source = MemorySource(SMALL.blob)
    with opened(SMALL, directory, source) as cache:
        cache.complete()
        assert source.closed == 1

    def no_source(_: object) -> MemorySource:
        raise AssertionError("asked for a source")

    cache = LayerCache(directory, no_source)
    assert cache.is_complete
    assert cache.read(0, cache.size) == SMALL.content
    cache.complete()
    cache.close()


def test_after_a_power_loss_what_was_not_synced_is_verified_before_it_counts(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *_, last = SMALL.units
    with opened(SMALL, directory) as cache:
        cache.fill(0, 1)
        cache.sync()
        cache.fill(0, cache.size)
    in_another_boot(monkeypatch)
    with (directory / "data").open("r+b") as data:  # what the disk did not get
        data.seek(last.cache_offset)
        data.write(bytes(100))
    source = MemorySource(SMALL.blob)
    with opened(SMALL, directory, source) as cache:
        assert "started anew" in cache.doubts
        assert cache.is_local(0, first.cache_length)
        assert not cache.is_local(first.cache_length, cache.size)
        assert cache.read(0, cache.size) == SMALL.content
        assert source.asked == [(last.source_offset, last.source_length)]
        assert cache.counters.kept_units == 3


def test_what_was_synced_counts_after_a_power_loss(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(SMALL, directory) as cache:
        cache.complete()
    in_another_boot(monkeypatch)
    with opened(SMALL, directory) as cache:
        assert cache.is_complete
        assert not cache.doubts


def test_a_boot_later_doubts_are_still_doubts(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(SMALL, directory) as cache:
        cache.fill(0, cache.size)
    source = MemorySource(SMALL.blob)
    for boot in ("second", "second", "third"):
        in_another_boot(monkeypatch, boot)
        with opened(SMALL, directory, source) as cache:
            assert not cache.is_local(0, 1)
    with opened(SMALL, directory, source) as cache:
        cache.fill(0, cache.size)
        assert source.asked == []


def test_what_a_sync_may_have_lost_is_written_anew(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    source = MemorySource(SMALL.blob)
    with opened(SMALL, directory, source) as cache:
        with monkeypatch.context() as patch:
            patch.setattr("lamina.lazy.cache.os.fdatasync", fail)
            with pytest.raises(OSError, match="Input/output"):
                cache.complete()
        assert not cache.is_complete
        written = cache.counters.written_bytes
        cache.complete()
        assert cache.local_bytes == cache.unit_bytes
        assert cache.counters.kept_units == 0
        assert cache.counters.written_bytes == 2 * written


def test_a_kill_in_a_sync_that_fails_leaves_a_doubt(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever comes next must not take for synced what the kernel has told of once."""
    with opened(SMALL, directory) as cache:
        cache.fill(0, cache.size)
        found = []

        def fail(fd: int) -> None:
            found.append((directory / "map").read_bytes()[128:])
            raise OSError(errno.EIO, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr("lamina.lazy.cache.os.fdatasync", fail)
            with pytest.raises(OSError, match="Input/output"):
                cache.sync()
        assert found[0] == b"\3" * len(SMALL.units)
        assert cache.local_bytes == 0
    (directory / "map").write_bytes((directory / "map").read_bytes()[:128] + found[0])
    with opened(SMALL, directory) as cache:
        assert not cache.is_complete
        assert cache.read(0, cache.size) == SMALL.content
        assert cache.counters.kept_units == len(SMALL.units)


def test_what_a_sync_has_lost_is_missing_even_if_the_map_cannot_be_written(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(SMALL, directory) as cache:
        cache.fill(0, cache.size)
        with monkeypatch.context() as patch:

            def fail(*_: object) -> int:
                raise OSError(errno.EIO, "Input/output error")

            def lose(fd: int) -> None:
                patch.setattr("lamina.lazy.unit_map.os.pwrite", fail)
                fail()

            patch.setattr("lamina.lazy.cache.os.fdatasync", lose)
            with pytest.raises(OSError, match="Input/output"):
                cache.sync()
        assert not cache.is_complete
        assert cache.local_bytes == 0
        assert cache.read(0, cache.size) == SMALL.content
        cache.complete()
        assert cache.is_durable


def test_complete_is_not_durable(directory: Path) -> None:
    with opened(SMALL, directory) as cache:
        cache.fill(0, cache.size)
        assert (cache.is_complete, cache.is_durable) == (True, False)
        cache.sync()
        assert (cache.is_complete, cache.is_durable) == (True, True)


def test_closing_waits_for_who_reads_the_file(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A number that is closed may be another file's at once, whose bytes a reader must not get."""
    cache = SMALL.open(directory)
    cache.fill(0, cache.size)
    reading, closing = threading.Event(), threading.Event()
    pread = os.pread

    def slow(fd: int, length: int, offset: int) -> bytes:
        reading.set()
        assert closing.wait(IMPATIENT.fill_seconds)
        time.sleep(0.05)
        return pread(fd, length, offset)

    monkeypatch.setattr("lamina.lazy.cache.os.pread", slow)
    found: list[bytes] = []

    def close() -> None:
        assert reading.wait(IMPATIENT.fill_seconds)
        closing.set()
        cache.close()

    assert run_threads(lambda: found.append(cache.read(0, cache.size)), close) == []
    assert found == [SMALL.content]
    for use in (lambda: cache.read(0, 1), lambda: cache.local_bytes, cache.sync):
        with pytest.raises(FailedPrecondition, match="closed"):
            use()


def test_reads_while_it_is_closed_and_its_numbers_are_used_again(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"!" * len(SMALL.content))
    for attempt in range(40):
        cache = SMALL.open(SMALL.create(tmp_path / f"{attempt}"))
        cache.fill(0, cache.size)
        start = threading.Barrier(3)

        def read(cache: LayerCache = cache, start: threading.Barrier = start) -> None:
            start.wait()
            while True:
                assert cache.read(0, cache.size) == SMALL.content

        def close(cache: LayerCache = cache, start: threading.Barrier = start) -> None:
            start.wait()
            cache.close()
            for fd in [os.open(other, os.O_RDONLY) for _ in range(8)]:
                os.close(fd)

        errors = run_threads(read, read, close)
        assert [type(error) for error in errors] == [FailedPrecondition] * 2


def test_a_use_that_does_not_end_keeps_the_files(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = replace(NO_AHEAD, fill_seconds=0.05)
    cache = SMALL.open(directory, policy=policy)
    cache.fill(0, cache.size)
    pread = os.pread
    end = threading.Event()

    def hang(fd: int, length: int, offset: int) -> bytes:
        end.wait()
        return pread(fd, length, offset)

    with monkeypatch.context() as patch:
        patch.setattr("lamina.lazy.cache.os.pread", hang)
        found: list[bytes] = []
        reader = threading.Thread(target=lambda: found.append(cache.read(0, cache.size)))
        reader.start()
        while not cache._users._count:
            time.sleep(0.001)
        cache.close()
        assert not cache._let_go
        end.set()
        reader.join()
    close_at_last(cache)
    assert found == [SMALL.content]


def test_other_data_under_the_map_is_not_believed(directory: Path) -> None:
    with opened(SMALL, directory) as cache:
        cache.complete()
    data = directory / "data"
    copy = directory / "copy"
    copy.write_bytes(bytes(len(SMALL.content)))
    copy.rename(data)
    with opened(SMALL, directory) as cache:
        assert "another" in cache.doubts
        assert cache.read(0, cache.size) == SMALL.content

    os.truncate(data, 5000)
    with opened(SMALL, directory) as cache:
        assert not cache.is_local(0, 1)
        assert cache.read(0, cache.size) == SMALL.content
        assert cache.counters.kept_units == 1

    data.unlink()
    with opened(SMALL, directory) as cache:
        assert cache.read(0, cache.size) == SMALL.content


@pytest.mark.parametrize("position", [0, 8, 20, 40, 70, 124, 128])
def test_a_damaged_map_is_not_believed(directory: Path, position: int) -> None:
    with opened(SMALL, directory) as cache:
        cache.fill(0, 1)
    with (directory / "map").open("r+b") as file:
        file.seek(position)
        file.write(b"\xff")
    source = MemorySource(SMALL.blob)
    with opened(SMALL, directory, source) as cache:
        assert not cache.is_local(0, 1)
        assert cache.read(0, cache.size) == SMALL.content
        assert cache.counters.kept_units == 1


def test_a_map_that_was_cut_off_is_not_believed(directory: Path) -> None:
    for length in range(128 + len(SMALL.units)):
        with opened(SMALL, directory) as cache:
            cache.fill(0, cache.size)
        os.truncate(directory / "map", length)
        with opened(SMALL, directory) as cache:
            assert not cache.is_local(0, 1)


def test_a_layer_whose_table_is_damaged_is_refused(directory: Path) -> None:
    table = directory / "table"
    whole = table.read_bytes()
    table.write_bytes(whole[:-1])
    with pytest.raises(FormatError, match="table"):
        SMALL.open(directory)
    table.unlink()
    with pytest.raises(FormatError, match="no file"):
        SMALL.open(directory)
    table.write_bytes(whole)
    (directory / "layer.json").write_text('{"source": {"type": "file"}}')
    with pytest.raises(FormatError, match="path"):
        SMALL.open(directory)
    (directory / "layer.json").write_text('{"source": {"type": "file", "path": ""}, "version": 2}')
    with pytest.raises(FormatError, match="version 1"):
        SMALL.open(directory)


def test_a_layer_is_made_once(directory: Path) -> None:
    with pytest.raises(AlreadyExists):
        SMALL.create(directory)
    assert [path.name for path in directory.parent.iterdir()] == [directory.name]


def test_a_second_user_is_told_who_has_it(directory: Path) -> None:
    expected = pytest.raises(FailedPrecondition, match=f"process {os.getpid()} ")
    with opened(SMALL, directory), expected:
        SMALL.open(directory)
    with opened(SMALL, directory):
        pass
    with pytest.raises(NotFound):
        SMALL.open(directory.with_name("nothing"))


def test_damage_is_found_in_what_is_durable(directory: Path) -> None:
    damaged = SMALL.units[1].pieces[2]
    with opened(SMALL, directory) as cache:
        cache.fill(0, cache.size)
        with (directory / "data").open("r+b") as data:
            data.seek(damaged.cache_offset)
            data.write(b"rot")
        assert damaged_bytes(directory) == 0
        cache.complete()
        assert damaged_bytes(directory) == damaged.length
    (directory / "data").unlink()
    assert damaged_bytes(directory) == 0


def test_what_nothing_can_verify_is_fetched_again_after_a_power_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = make_layer([[5000], [3]], check=Check.NONE)
    directory = layer.create(tmp_path / "layer")
    with opened(layer, directory) as cache:
        cache.fill(0, cache.size)
    in_another_boot(monkeypatch)
    source = MemorySource(layer.blob)
    with opened(layer, directory, source) as cache:
        assert cache.read(0, cache.size) == layer.content
        assert source.asked == [(0, len(layer.blob))]
        cache.complete()
    (directory / "data").write_bytes(bytes(cache.size))
    assert damaged_bytes(directory) == 0  # for all that anybody knows


def test_completion_goes_through_the_given_order_first(tmp_path: Path) -> None:
    layer = make_layer([[BLOCK]] * 6, [Codec.NONE])
    source = MemorySource(layer.blob)
    policy = replace(NO_AHEAD, background_bytes=1, background_requests=1)
    with opened(layer, layer.create(tmp_path / "layer"), source, policy) as cache:
        cache.complete([(4 * BLOCK, 5 * BLOCK), (2 * BLOCK, 3 * BLOCK)])
        assert cache.is_complete
    length = layer.units[0].source_length
    assert [offset // length for offset, _ in source.asked] == [4, 2, 0, 1, 3, 5]
    assert on_disk(tmp_path / "layer") == layer.content


def test_completion_gives_way_to_readers(tmp_path: Path) -> None:
    layer = make_layer([[BLOCK]] * 8, [Codec.NONE])
    reading, go_on = threading.Event(), threading.Event()
    last = layer.units[7].source_offset

    def hook(offset: int, _: int) -> None:
        if offset == last:
            reading.set()
            go_on.wait()

    source = MemorySource(layer.blob, hook)
    with opened(layer, layer.create(tmp_path / "layer"), source) as cache:

        def complete() -> None:
            reading.wait()
            threading.Timer(0.1, go_on.set).start()
            cache.complete()

        assert run_threads(lambda: cache.fill(7 * BLOCK, 8 * BLOCK), complete) == []
        assert cache.is_complete
    assert source.asked == [(last, BLOCK + 1024), (0, last)]


def test_completion_stops_when_told(tmp_path: Path) -> None:
    layer = make_layer([[BLOCK]] * 8, [Codec.NONE])
    token = CancelToken()

    def hook(offset: int, _: int) -> None:
        token.cancel()

    source = MemorySource(layer.blob, hook)
    policy = replace(NO_AHEAD, background_bytes=1, background_requests=1)
    with opened(layer, layer.create(tmp_path / "layer"), source, policy) as cache:
        with cancellable(token), pytest.raises(Cancelled):
            cache.complete()
        assert not cache.is_complete


def test_closing_stops_completion_and_readers(tmp_path: Path) -> None:
    layer = make_layer([[BLOCK]] * 30, [Codec.NONE])
    started = threading.Event()

    def hook(offset: int, _: int) -> None:
        started.set()
        while not cache._closed:
            time.sleep(0.001)

    policy = replace(NO_AHEAD, request_bytes=1, background_bytes=1, workers=2)
    cache = layer.open(layer.create(tmp_path / "layer"), MemorySource(layer.blob, hook), policy)

    def close() -> None:
        started.wait()
        cache.close()

    errors = run_threads(cache.complete, lambda: cache.fill(0, cache.size), close)
    assert {type(error) for error in errors} <= {Cancelled, FailedPrecondition}
    assert len(errors) == 2
    with pytest.raises(FailedPrecondition, match="closed"):
        cache.sync()
    with opened(layer, tmp_path / "layer") as again:
        assert again.read(0, again.size) == layer.content


def test_prefetch_brings_what_it_names(directory: Path) -> None:
    with opened(SMALL, directory) as cache:
        third = SMALL.units[2]
        cache.prefetch([(third.cache_offset, third.cache_offset + 1), (0, 0)])
        assert cache.is_local(third.cache_offset, third.cache_offset + 1)
        assert not cache.is_local(0, 1)


def test_reading_straight_on_is_fetched_ahead(tmp_path: Path) -> None:
    layer = make_layer([[BLOCK]] * 64, [Codec.NONE])
    source = MemorySource(layer.blob)
    policy = replace(
        IMPATIENT, request_bytes=8 * BLOCK, readahead_first=2 * BLOCK, readahead_most=8 * BLOCK
    )
    with opened(layer, layer.create(tmp_path / "layer"), source, policy) as cache:
        for number in range(64):
            start = number * BLOCK
            assert cache.read(start, BLOCK) == layer.content[start : start + BLOCK]
        assert cache.is_complete
        assert len(source.asked) < 40


def test_reading_here_and_there_fetches_nothing_ahead(tmp_path: Path) -> None:
    layer = make_layer([[BLOCK]] * 64, [Codec.NONE])
    source = MemorySource(layer.blob)
    with opened(layer, layer.create(tmp_path / "layer"), source, IMPATIENT) as cache:
        for number in (3, 40, 7, 50, 20):
            cache.fill(number * BLOCK, number * BLOCK + 1)
    assert len(source.asked) == 5


def test_caches_share_threads(tmp_path: Path) -> None:
    workers = Workers(2)
    names = set()

    def hook(offset: int, length: int) -> None:
        names.add(threading.current_thread().name)

    caches = []
    for number in range(4):
        layer = make_layer([[BLOCK]] * 4, seed=number)
        source = MemorySource(layer.blob, hook)
        cache = LayerCache(
            layer.create(tmp_path / f"{number}"),
            lambda _, source=source: source,  # type: ignore[misc]
            policy=NO_AHEAD,
            workers=workers,
        )
        caches.append((cache, layer))
    for cache, layer in caches:
        assert cache.read(0, cache.size) == layer.content
        cache.close()
    assert names <= {"lazy-fetch-0", "lazy-fetch-1"}
    workers.close()
    with pytest.raises(FailedPrecondition, match="closed"):
        workers.submit(lambda: None, urgent=True)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_random_use(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    lengths = data.draw(
        st.lists(st.lists(st.integers(1, 6000), min_size=1, max_size=3), min_size=1, max_size=8)
    )
    layer = make_layer(lengths, data.draw(st.permutations(ALONE)))
    directory = layer.create(tmp_path_factory.mktemp("random") / "layer")
    most = data.draw(st.integers(1, 20_000))
    policy = replace(IMPATIENT, request_bytes=most, background_bytes=most)
    boot = 0
    with pytest.MonkeyPatch.context() as patch:
        for failing in data.draw(st.lists(st.booleans(), min_size=1, max_size=4)):
            source = MemorySource(layer.blob, _fail_at_times if failing else _never_fail)
            with opened(layer, directory, source, policy) as cache:
                _use(cache, layer, data, failing)
            boot += data.draw(st.integers(0, 1))
            in_another_boot(patch, str(boot))


def _never_fail(offset: int, length: int) -> None:
    pass


def _fail_at_times(offset: int, length: int) -> None:
    if offset % 3 == 0:
        raise Unavailable("fetch")


def _use(cache: LayerCache, layer: Layer, data: st.DataObject, failing: bool) -> None:
    for _ in range(data.draw(st.integers(0, 5))):
        start = data.draw(st.integers(0, cache.size))
        length = data.draw(st.integers(0, cache.size - start))
        try:
            assert cache.read(start, length) == layer.content[start : start + length]
        except Unavailable:
            assert failing
    if data.draw(st.booleans()):
        cache.sync()
    _check_marks(cache, layer)


def _check_marks(cache: LayerCache, layer: Layer) -> None:
    """Check that every unit that is said to be local has its bytes, padding included."""
    for unit in layer.units:
        stop = unit.cache_offset + padded(unit.cache_length)
        if cache.is_local(unit.cache_offset, stop):
            data = os.pread(cache.data_fd, stop - unit.cache_offset, unit.cache_offset)
            assert data == layer.content[unit.cache_offset : stop]


def test_counters_are_safe_for_threads() -> None:
    counters = fetching.Counters()

    def count() -> None:
        for _ in range(2000):
            counters.add(fills=1)

    run_threads(*[count] * 4)
    assert counters.fills == 8000


def test_a_layer_without_data(tmp_path: Path) -> None:
    empty = Layer(b"", [], b"")
    with opened(empty, empty.create(tmp_path / "empty")) as cache:
        assert cache.is_complete
        assert cache.read(0, 0) == b""
        cache.complete()
