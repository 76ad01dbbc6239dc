"""Background work of a lazy layer: what comes first, what is kept, and what follows a failure."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lamina.core.cancel import check_cancelled
from lamina.errors import Unavailable
from lamina.lazy import background
from lamina.lazy.background import Background
from lamina.lazy.served import ServedList, Wish

SECONDS = 20.0


class Filler:
    """Does what the test says, and notes it."""

    size = 10
    is_complete = False
    is_durable = False
    data_path = Path("/nowhere/data")

    def __init__(self) -> None:
        self.local_bytes = 0
        self.done: list[str] = []
        self.faults: list[Exception] = []
        self.held = threading.Event()
        self.go = threading.Event()
        self.go.set()

    def fetch_wanted(self) -> None:
        self.done.append("first")

    def complete(self, *, at_once: bool = False) -> None:
        self.done.append("all at once" if at_once else "all")
        self.held.set()
        while not self.go.wait(0.005):
            check_cancelled()
        if self.faults:
            raise self.faults.pop(0)

    def is_local(self, start: int, stop: int) -> bool:
        raise NotImplementedError

    def fill(self, start: int, stop: int) -> range:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


@pytest.fixture
def filler() -> Filler:
    return Filler()


@pytest.fixture
def kept() -> list[Wish]:
    return []


@pytest.fixture
def work(filler: Filler, kept: list[Wish]) -> Iterator[Background]:
    made = Background(filler, kept.append)
    yield made
    made.close()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_what_is_wanted_first_comes_first(
    work: Background, filler: Filler, kept: list[Wish]
) -> None:
    work.begin("first").result(SECONDS)
    assert (filler.done, kept) == (["first"], ["first", ""])
    work.begin("all").result(SECONDS)
    assert (filler.done, kept) == (["first", "first", "all"], ["first", "", "all", ""])
    assert work.progress == ("", "", 0.0)
    until(lambda: not work.is_under_way)


def test_a_list_that_comes_later_goes_before_the_rest(
    work: Background, filler: Filler, kept: list[Wish]
) -> None:
    filler.go.clear()
    all = work.begin("all")
    assert filler.held.wait(SECONDS)
    assert work.progress.stage == "all"
    work.begin("first")
    until(lambda: filler.done == ["first", "all", "first", "all"])
    assert not all.done()
    filler.go.set()
    all.result(SECONDS)
    assert kept == ["all", ""]


def test_who_waits_for_it_has_it_at_once(work: Background, filler: Filler) -> None:
    filler.go.clear()
    work.begin("all")
    assert filler.held.wait(SECONDS)
    waited_for = work.begin("all", at_once=True)
    until(lambda: filler.done == ["first", "all", "first", "all at once"])
    filler.go.set()
    waited_for.result(SECONDS)
    until(lambda: not work.is_under_way)
    work.begin("all").result(SECONDS)
    assert filler.done[4:] == ["first", "all"]


def test_a_failure_is_told_and_tried_again(
    work: Background, filler: Filler, kept: list[Wish], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "SHORTEST_PAUSE", 0.02)
    filler.faults = [Unavailable("fetch", "a", hint="try later"), OSError("b")]
    with pytest.raises(Unavailable, match="try later"):
        work.begin("all").result(SECONDS)
    until(lambda: not work.is_under_way)
    assert filler.done == ["first", "all"] * 3
    assert kept == ["all", ""]


def test_a_pause_is_shown_doubles_and_ends_when_somebody_asks(
    work: Background, filler: Filler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "SHORTEST_PAUSE", 0.01)
    filler.faults = [Unavailable("fetch", str(number)) for number in range(20)]
    work.begin("all")
    until(lambda: work.progress.resume_seconds > 0.5)
    assert work.is_under_way
    assert work.progress.stage == "paused"
    assert "unavailable" in work.progress.reason
    filler.faults = []
    work.begin("all").result(SECONDS)
    assert work.progress == ("", "", 0.0)


def test_what_came_makes_the_next_pause_short(
    work: Background, filler: Filler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "SHORTEST_PAUSE", 0.001)
    monkeypatch.setattr(background, "LONGEST_PAUSE", 1000.0)
    faults = 40  # whose pauses, doubled each time, would be older than the universe

    class Slow(Filler):
        def complete(self, *, at_once: bool = False) -> None:
            self.local_bytes += 1
            super().complete(at_once=at_once)

    slow = Slow()
    slow.faults = [Unavailable("fetch")] * faults
    many = Background(slow, lambda wish: None)
    many.begin("all")
    until(lambda: not many.is_under_way)
    assert slow.local_bytes == faults + 1


def test_it_ends_when_closed_and_the_wish_stays(
    work: Background, filler: Filler, kept: list[Wish]
) -> None:
    filler.go.clear()
    future = work.begin("all")
    assert filler.held.wait(SECONDS)
    work.close()
    assert future.exception(SECONDS) is not None
    until(lambda: not work.is_under_way)
    assert kept == ["all"]


def test_the_wish_is_there_for_the_next_worker(tmp_path: Path) -> None:
    served = ServedList(tmp_path)
    layer = served.add(tmp_path / "one", "a:b", "fuse")
    assert layer.wish == ""
    served.wish(layer.number, "all")
    served.wish(77, "first")
    assert [one.wish for one in ServedList(tmp_path).layers] == ["all"]
