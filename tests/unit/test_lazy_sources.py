"""Sources that are opened when their bytes are needed."""

from __future__ import annotations

import threading

import pytest

from lamina.errors import DataLoss, Unavailable
from lamina.lazy.sources.description import FileDescription
from lamina.lazy.sources.on_demand import SourceOnDemand
from tests.lazy_layers import MemorySource

DESCRIPTION = FileDescription("/somewhere")


def test_it_is_opened_once_and_again_after_closing() -> None:
    source = MemorySource(b"abcdef")
    opened = []

    def opener(description: object) -> MemorySource:
        opened.append(description)
        return source

    on_demand = SourceOnDemand(opener, DESCRIPTION, 6)
    on_demand.close()
    assert (on_demand.size, opened, source.closed) == (6, [], 0)
    assert on_demand.read_at(1, 2) + on_demand.read_at(0, 1) == b"bca"
    assert opened == [DESCRIPTION]
    on_demand.close()
    on_demand.close()
    assert source.closed == 1
    assert on_demand.read_at(5, 1) == b"f"
    assert len(opened) == 2


def test_it_is_not_closed_under_a_read() -> None:
    reading, go_on = threading.Event(), threading.Event()

    def hook(offset: int, length: int) -> None:
        reading.set()
        go_on.wait()

    source = MemorySource(b"abc", hook)
    on_demand = SourceOnDemand(lambda _: source, DESCRIPTION, 3)
    got: list[bytes] = []
    thread = threading.Thread(target=lambda: got.append(on_demand.read_at(0, 3)))
    thread.start()
    reading.wait()
    on_demand.close()
    assert source.closed == 0
    go_on.set()
    thread.join()
    assert (got, source.closed) == ([b"abc"], 1)


def test_one_that_cannot_be_opened_is_tried_again() -> None:
    source = MemorySource(b"abc")
    errors = [Unavailable("open")]

    def opener(_: object) -> MemorySource:
        if errors:
            raise errors.pop()
        return source

    on_demand = SourceOnDemand(opener, DESCRIPTION, 3)
    with pytest.raises(Unavailable):
        on_demand.read_at(0, 1)
    assert on_demand.read_at(0, 1) == b"a"
    with pytest.raises(DataLoss, match="it has 3 bytes, the layer 4"):
        SourceOnDemand(opener, DESCRIPTION, 4).read_at(0, 1)
    assert source.closed == 1
