"""How many threads there are for calls."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable

from lamina.api.threads import Threads
from tests.grpc_server import WAIT


def _count() -> int:
    return sum(thread.name == "grpc-call" for thread in threading.enumerate())


async def _until(condition: Callable[[], bool]) -> None:
    async def poll() -> None:
        while not condition():
            await asyncio.sleep(0.002)

    await asyncio.wait_for(poll(), WAIT)


def _run(test: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await test()
        await _until(lambda: _count() == 0)

    asyncio.run(main())


def test_few_for_short_jobs() -> None:
    done: list[int] = []

    async def test() -> None:
        threads = Threads(done.append, 64)
        for number in range(1000):
            threads.submit(number)
            if number % 50 == 0:
                await asyncio.sleep(0)
        await _until(lambda: len(done) == 1000)
        assert _count() == 4
        threads.stop()

    _run(test)
    assert sorted(done) == list(range(1000))


def test_more_for_long_jobs_and_few_again() -> None:
    release = threading.Event()
    running: list[int] = []

    def work(number: int) -> None:
        running.append(number)
        release.wait(WAIT)

    async def test() -> None:
        threads = Threads(work, 20)
        for number in range(30):
            threads.submit(number)
        await _until(lambda: len(running) == 20)
        assert _count() == 20
        release.set()
        await _until(lambda: len(running) == 30)
        await _until(lambda: _count() == 4)
        threads.stop()

    _run(test)


def test_a_job_waits_only_a_moment_behind_long_ones() -> None:
    release = threading.Event()
    taken = threading.Event()

    def work(kind: str) -> None:
        if kind == "long":
            release.wait(WAIT)
        else:
            taken.set()

    async def test() -> None:
        threads = Threads(work, 64)
        for _ in range(40):
            threads.submit("long")
        before = time.monotonic()
        threads.submit("short")
        await _until(taken.is_set)
        assert time.monotonic() - before < 1
        release.set()
        threads.stop()

    _run(test)


def test_no_more_than_one_where_one_is_allowed() -> None:
    names: set[str] = set()

    async def test() -> None:
        threads: Threads[int] = Threads(lambda job: names.add(threading.current_thread().name), 1)
        for number in range(10):
            threads.submit(number)
        await _until(lambda: bool(names))
        assert _count() == 1
        threads.stop()

    _run(test)
