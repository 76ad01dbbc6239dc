"""When what nobody waits for may be fetched, and which reads a filler has to be told of."""

from __future__ import annotations

import threading
import time
from contextlib import closing
from pathlib import Path
from typing import cast

import pytest

from lamina.errors import Cancelled, Unavailable
from lamina.lazy.cache import LayerCache
from lamina.lazy.gates import Filler, GatedFile
from lamina.lazy.quiet import Quiet
from tests.lazy_layers import MemorySource, make_layer

SILENCE = 0.2


def never() -> None:
    """Find no reason to stop waiting."""


def test_silence_counts_from_the_last_reader_of_any_layer() -> None:
    quiet = Quiet(SILENCE)
    began = time.monotonic()
    quiet.wait(never)
    assert time.monotonic() - began < SILENCE
    go_on = threading.Event()

    def read() -> None:
        with quiet.disturbed():
            go_on.wait()

    reader = threading.Thread(target=read)
    reader.start()
    ended = threading.Timer(SILENCE, go_on.set)
    ended.start()
    quiet.wait(never)
    assert go_on.is_set()
    assert time.monotonic() - began >= 2 * SILENCE
    reader.join()
    quiet.disturb()
    began = time.monotonic()
    quiet.wait(never)
    assert time.monotonic() - began >= SILENCE


def test_whoever_waits_for_silence_can_be_told_to_stop() -> None:
    quiet = Quiet(60.0)
    quiet.disturb()

    def stop() -> None:
        raise Cancelled("wait")

    with pytest.raises(Cancelled):
        quiet.wait(stop)


def test_a_cache_keeps_quiet_for_the_readers_of_another(tmp_path: Path) -> None:
    layer = make_layer([[4096]] * 4)
    directory = layer.create(tmp_path / "layer")
    quiet = Quiet(60.0)
    errors: list[Exception] = []

    def complete() -> None:
        try:
            cache.complete()
        except Cancelled as error:
            errors.append(error)

    with closing(LayerCache(directory, lambda _: MemorySource(layer.blob), quiet=quiet)) as cache:
        quiet.disturb()
        completing = threading.Thread(target=complete)
        completing.start()
        completing.join(SILENCE)
        assert (completing.is_alive(), cache.local_bytes) == (True, 0)
        cache.complete(at_once=True)
        assert cache.is_durable
    completing.join()
    assert len(errors) == 1


class _Units:
    """A filler with units of 100 bytes that notes what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []
        self.fault: Exception | None = None

    def fill(self, start: int, stop: int) -> range:
        self.asked.append((start, stop))
        if self.fault is not None:
            raise self.fault
        return range(start // 100 * 100, -(-stop // 100) * 100)


def test_a_filler_is_told_of_the_first_read_in_a_unit() -> None:
    filler = _Units()
    file = GatedFile(1, Path("/nowhere/data"), cast("Filler", filler))
    for start in range(0, 300, 20):
        if file.is_news(start, start + 20):
            file.follow(start, start + 20)
    assert filler.asked == [(0, 20), (100, 120), (200, 220)]
    assert file.is_news(180, 220)


def test_what_could_not_be_told_is_told_again() -> None:
    filler = _Units()
    file = GatedFile(1, Path("/nowhere/data"), cast("Filler", filler))
    filler.fault = Unavailable("fetch")
    file.follow(0, 20)
    assert file.is_news(20, 40)
