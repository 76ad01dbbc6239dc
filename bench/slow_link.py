"""A TCP proxy that is as slow as a network: its connections share one rate, and bytes take time.

    python -m bench.slow_link HOST:PORT BITS_PER_SECOND DELAY_SECONDS

Linux's netem would do the same, where the kernel has it. The delay is added in each direction, so
that a question and its answer take twice as long; what is under way does not hold up what follows.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_PIECE = 64 << 10
_BURST_SECONDS = 0.05
"""What was not sent in the last moments may be sent at once: timers are late."""
_UNDER_WAY = 512
"""Pieces that are delayed at a time, for one direction of a connection."""


@dataclass(frozen=True)
class SlowLink:
    """A link that runs; `host` is its `127.0.0.1:PORT`."""

    host: str
    process: subprocess.Popen[str]

    def bytes_sent(self) -> int:
        """Return how many bytes have come from the other side since it was asked last."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


@contextmanager
def slow_link(host: str, *, bits: float, delay: float) -> Iterator[SlowLink]:
    """Run a link to `host` in a process of its own.

    Args:
        host: `ADDRESS:PORT` of the other side.
        bits: that come from there in a second, for all connections together.
        delay: seconds, in each direction.
    """
    argv = [sys.executable, "-m", "bench.slow_link", host, str(bits), str(delay)]
    process = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="ascii"
    )
    assert process.stdout is not None
    try:
        yield SlowLink(f"127.0.0.1:{int(process.stdout.readline())}", process)
    finally:
        process.kill()
        process.wait()


class _Link:
    def __init__(self, host: str, bits: float, delay: float) -> None:
        self._address, _, port = host.rpartition(":")
        self._port = int(port)
        self._bytes_per_second = bits / 8
        self._delay = delay
        self._free_at = 0.0
        self.sent = 0

    async def serve(self) -> None:
        """Answer connections, and whoever asks for the count on standard input."""
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        print(server.sockets[0].getsockname()[1], flush=True)
        asyncio.get_running_loop().add_reader(sys.stdin, self._tell)
        async with server:
            await server.serve_forever()

    def _tell(self) -> None:
        if not sys.stdin.readline():
            sys.exit(0)
        print(self.sent, flush=True)
        self.sent = 0

    async def _connected(self, near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        far, forth = await asyncio.open_connection(self._address, self._port)
        await asyncio.gather(
            self._carry(near, forth, limited=False), self._carry(far, back, limited=True)
        )

    async def _carry(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, limited: bool
    ) -> None:
        loop = asyncio.get_running_loop()
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_UNDER_WAY)

        async def take() -> None:
            data = b"-"
            while data:
                try:
                    data = await source.read(_PIECE)
                except ConnectionError:
                    data = b""
                if limited and data:
                    await self._pass(len(data))
                await under_way.put((loop.time() + self._delay, data))

        async def give() -> None:
            while True:
                at, data = await under_way.get()
                await asyncio.sleep(at - loop.time())
                if not data:
                    break
                target.write(data)
                await target.drain()

        taking = asyncio.create_task(take())
        try:
            await give()
        except ConnectionError:
            pass
        finally:
            taking.cancel()
            target.close()

    async def _pass(self, length: int) -> None:
        """Wait until the link has carried so many bytes."""
        now = asyncio.get_running_loop().time()
        self._free_at = max(self._free_at, now - _BURST_SECONDS) + length / self._bytes_per_second
        self.sent += length
        await asyncio.sleep(self._free_at - now)


if __name__ == "__main__":
    asyncio.run(_Link(sys.argv[1], float(sys.argv[2]), float(sys.argv[3])).serve())
