"""What answers for a network block device, asked as the kernel asks; tests/vm has the kernel."""

from __future__ import annotations

import os
import random
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.lazy.gates import GatedFile
from lamina.lazy.gates.nbd_device import SLOT_COUNT, SLOT_SIZE, NbdDevice
from lamina.lazy.slots import new_memory
from lamina.linux import nbd
from tests.lazy_filler import UNIT, FileFiller

MIB = 1 << 20
SIZE = 8 * MIB + 700
SECONDS = 60.0


class Client:
    """The kernel's end, and the `Link` of those who answer."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.data = random.randbytes(SIZE)
        (directory / "source").write_bytes(self.data)
        self.memory = new_memory("test", SLOT_SIZE, SLOT_COUNT)
        self.connections = 0
        self.used: list[socket.socket] = []
        self.reconnect()

    @property
    def connection(self) -> int:
        return self.theirs.fileno()

    def reconnect(self) -> bool:
        ours, theirs = socket.socketpair()
        ours.settimeout(SECONDS)
        self.used += (ours, theirs)
        self.ours, self.theirs = ours, theirs
        self.connections += 1
        return True

    def disconnect(self) -> None:
        self.ask(0, 0, 0, kind=nbd.DISC)

    def device(self) -> NbdDevice:
        filler = FileFiller(self.directory)
        return NbdDevice(GatedFile(1, filler.data_path, filler), self)

    def ask(self, handle: int, offset: int, length: int, *, kind: int = nbd.READ) -> None:
        name = struct.pack(">Q", handle)
        self.ours.sendall(nbd.REQUEST.pack(nbd.REQUEST_MAGIC, kind, name, offset, length))

    def ask_all(self, asked: dict[int, tuple[int, int]]) -> None:
        for handle, (offset, length) in asked.items():
            self.ask(handle, offset, length)

    def receive(self, length: int) -> bytes:
        data = bytearray()
        while len(data) < length:
            part = self.ours.recv(length - len(data))
            assert part, "the connection has ended"
            data += part
        return bytes(data)

    def head(self) -> tuple[int, int]:
        """Return the handle of the next answer, and its error."""
        magic, error, handle = nbd.REPLY.unpack(self.receive(nbd.REPLY.size))
        assert magic == nbd.REPLY_MAGIC
        return int.from_bytes(handle, "big"), error

    def expect(self, asked: dict[int, tuple[int, int]]) -> None:
        """Receive the answers of some requests, in any order, each with the right bytes."""
        left = dict(asked)
        while left:
            handle, error = self.head()
            assert error == 0
            offset, length = left.pop(handle)
            expected = self.data[offset : offset + length].ljust(length, b"\0")
            assert self.receive(length) == expected

    def silent(self) -> bool:
        """Whether there is no answer left."""
        self.ours.settimeout(0.2)
        try:
            return not self.ours.recv(1)
        except TimeoutError:
            return True
        finally:
            self.ours.settimeout(SECONDS)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    found = Client(tmp_path)
    yield found
    for each in found.used:
        each.close()
    os.close(found.memory)


@pytest.fixture
def device(client: Client) -> Iterator[NbdDevice]:
    found = client.device()
    found.start()
    yield found
    found.close()
    assert found.is_over


def forked(client: Client) -> int:
    """Start a process that answers; return its number."""
    process = os.fork()
    if not process:
        client.ours.close()
        device = client.device()
        device.start()
        threading.Event().wait()
    return process


def killed(process: int) -> None:
    os.kill(process, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL


def wait_for_units(client: Client, count: int) -> None:
    deadline = time.monotonic() + SECONDS
    map = client.directory / "map"
    while not map.exists() or map.read_bytes().count(1) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_many_reads_at_once(client: Client, device: NbdDevice) -> None:
    for _ in range(2):  # of what is not local, and of what is
        offsets = random.sample(range(0, SIZE, nbd.SECTOR), nbd.QUEUE_DEPTH)
        asked = {number: (offset, 4096) for number, offset in enumerate(offsets)}
        asked[1000] = (0, SIZE)  # more than one buffer
        asked[1001] = (SIZE - 700, 1024)  # the end, which is in a sector
        # Answers may fill the socket before all is asked.
        asking = threading.Thread(target=client.ask_all, args=(asked,))
        asking.start()
        client.expect(asked)
        asking.join()


def test_what_cannot_be_filled_is_an_error(client: Client, device: NbdDevice) -> None:
    (client.directory / "fail").touch()
    client.ask(1, UNIT, 4096)
    assert client.head()[0] == 1
    client.ask(2, 0, nbd.MAX_READ + nbd.SECTOR)
    handle, error = client.head()
    assert (handle, bool(error)) == (2, True)
    (client.directory / "fail").unlink()
    client.ask(3, UNIT, 4096)
    client.expect({3: (UNIT, 4096)})


def test_a_process_killed_while_it_sends_is_gone_on_for_at_the_same_byte(client: Client) -> None:
    process = forked(client)
    client.ask(1, 0, 4 * MIB)
    begin = client.receive(100_000)
    for handle in (2, 3, 4):  # killed in the middle of it again and again
        client.ask(handle, handle * MIB, 4096)  # is in the socket, or in a slot by now
        killed(process)
        process = forked(client)
        begin += client.receive(500_000)
    begin += client.receive(nbd.REPLY.size + 4 * MIB - len(begin))
    assert begin == nbd.reply_head(struct.pack(">Q", 1)) + client.data[: 4 * MIB]
    client.expect({handle: (handle * MIB, 4096) for handle in (2, 3, 4)})
    assert client.silent()
    killed(process)


def test_what_waits_is_answered_by_the_next_process_once(client: Client) -> None:
    (client.directory / "hold").touch()
    process = forked(client)
    for handle in range(20):
        client.ask(handle, handle * UNIT, 4096)
    time.sleep(0.1)
    killed(process)
    for handle in range(20, 30):
        client.ask(handle, handle * UNIT, 4096)
    (client.directory / "hold").unlink()
    process = forked(client)
    client.expect({handle: (handle * UNIT, 4096) for handle in range(30)})
    assert client.silent()
    killed(process)


def test_answers_never_come_through_another_connection(client: Client, device: NbdDevice) -> None:
    (client.directory / "hold").touch()
    client.ask(1, 0, 4096)
    client.ask(2, UNIT, 4096)
    time.sleep(0.1)
    client.ours.shutdown(socket.SHUT_RDWR)  # as the kernel does when it has waited too long
    deadline = time.monotonic() + SECONDS
    while client.connections < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    client.ask(3, 0, 4096)
    (client.directory / "hold").unlink()
    client.expect({3: (0, 4096)})
    assert client.silent()


def test_a_request_to_write_ends_the_connection(client: Client, device: NbdDevice) -> None:
    connection = client.ours
    client.ask(1, 0, 4096, kind=1)
    assert connection.recv(1) == b""
