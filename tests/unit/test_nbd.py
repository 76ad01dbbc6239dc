"""What is said to the kernel for network block devices, and what it says."""

from __future__ import annotations

import errno
import mmap
import os
import signal
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina.lazy.gates import nbd_device
from lamina.lazy.slots import Slots, new_memory
from lamina.linux import genetlink, nbd, sendmmsg
from lamina.linux.nbd_probe import probe

HANDLE = bytes(range(8))
WHOLE = 1 << 20


@pytest.mark.parametrize(
    ("layout", "size"),
    [
        (genetlink.MESSAGE, 16),
        (genetlink.HEADER, 4),
        (genetlink.ATTRIBUTE, 4),
        (nbd.REQUEST, 28),
        (nbd.REPLY, 16),
    ],
)
def test_sizes(layout: struct.Struct, size: int) -> None:
    assert layout.size == size


def test_sizes_of_notes_and_slots() -> None:
    assert sendmmsg.NOTE_SIZE == 64
    assert nbd_device.SLOT_SIZE % 8 == 0


def test_attributes_are_padded_and_nested() -> None:
    inner = genetlink.attribute(1, b"abcde")
    assert inner == struct.pack("=HH", 9, 1) + b"abcde" + bytes(3)
    nested = genetlink.attribute(0x8007, inner) + genetlink.attribute(2, b"")
    found = genetlink.attributes(nested)
    assert found == {7: inner, 2: b""}
    assert genetlink.attributes(found[7]) == {1: b"abcde"}


def test_messages_follow_each_other() -> None:
    data = struct.pack("=IHHII", 19, 30, 0, 0, 0) + b"abc" + bytes(1)
    data += struct.pack("=IHHII", 16, 2, 0, 0, 0)
    assert list(genetlink.messages(data)) == [(30, b"abc"), (2, b"")]


@pytest.mark.parametrize("length", [0, 1, 3, 10, 0xFFFF])
def test_attributes_of_wrong_lengths_are_refused(length: int) -> None:
    with pytest.raises(OSError, match="wrong length") as raised:
        genetlink.attributes(struct.pack("=HH", length, 1) + b"abcde")
    assert raised.value.errno == errno.EPROTO


@pytest.mark.parametrize("length", [0, 15, 18, 0xFFFFFFFF])
def test_messages_of_wrong_lengths_are_refused(length: int) -> None:
    with pytest.raises(OSError, match="wrong length"):
        list(genetlink.messages(struct.pack("=IHHII", length, 2, 0, 0, 0) + b"x"))


@given(st.binary(max_size=64))
def test_no_bytes_are_read_past_the_end(data: bytes) -> None:
    for parse in (genetlink.attributes, lambda data: list(genetlink.messages(data))):
        try:
            parse(data)
        except OSError as error:
            assert error.errno == errno.EPROTO


def test_errors_are_raised_and_acknowledgements_are_not() -> None:
    genetlink.check(struct.pack("=i", 0) + bytes(16))
    with pytest.raises(OSError, match="Device or resource busy") as raised:
        genetlink.check(struct.pack("=i", -errno.EBUSY))
    assert raised.value.errno == errno.EBUSY
    with pytest.raises(OSError, match="wrong length"):
        genetlink.check(b"\0\0")


def test_the_kernel_is_asked_for_families() -> None:
    with genetlink.Family("nlctrl", 2) as control:
        asked = [genetlink.attribute(genetlink.CTRL_ATTR_FAMILY_NAME, b"nlctrl\0")]
        [found] = control.request(genetlink.CTRL_CMD_GETFAMILY, asked)
    assert found[genetlink.CTRL_ATTR_FAMILY_ID] == struct.pack("=H", genetlink.GENL_ID_CTRL)
    with pytest.raises(FileNotFoundError):
        genetlink.Family("lamina-none", 1)


def test_the_probe_says_what_is_missing() -> None:
    if Path("/sys/module/nbd").exists():
        pytest.skip("this kernel has network block devices")
    assert probe() == "the kernel has no network block devices; as root: modprobe nbd"
    assert nbd.find("lamina") is None


def test_requests_and_answers() -> None:
    packed = bytes.fromhex("25609513 00000000") + HANDLE + struct.pack(">QI", 1 << 40, 4096)
    assert nbd.parse_request(packed) == (nbd.READ, HANDLE, 1 << 40, 4096)
    assert nbd.reply_head(HANDLE) == bytes.fromhex("67446698 00000000") + HANDLE
    assert nbd.reply_head(HANDLE, 5) == bytes.fromhex("67446698 00000005") + HANDLE


@pytest.mark.parametrize("data", [b"", b"\x25\x60\x95\x13", bytes(28), b"\x67\x44\x66\x98" * 7])
def test_what_is_no_request_is_refused(data: bytes) -> None:
    with pytest.raises(OSError, match="request of a network block device") as raised:
        nbd.parse_request(data)
    assert raised.value.errno == errno.EPROTO


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_what_is_sent_is_noted(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    note = memoryview(mmap.mmap(-1, sendmmsg.NOTE_SIZE))
    assert sendmmsg.sent_bytes(note) == 0
    assert sendmmsg.send(ours.fileno(), note, [bytearray(b"head"), memoryview(bytearray(9))]) == 13
    assert sendmmsg.sent_bytes(note) == 13
    assert theirs.recv(64) == b"head" + bytes(9)
    theirs.close()
    unsent = memoryview(bytearray(sendmmsg.NOTE_SIZE))
    with pytest.raises(BrokenPipeError):
        sendmmsg.send(ours.fileno(), unsent, [bytearray(1)])
    assert sendmmsg.sent_bytes(unsent) == 0


def test_a_killed_process_leaves_a_note_of_what_it_has_sent(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    note = memoryview(mmap.mmap(-1, sendmmsg.NOTE_SIZE))
    process = os.fork()
    if not process:
        sendmmsg.send(ours.fileno(), note, [bytearray(WHOLE)])
        os._exit(0)
    received = len(theirs.recv(1))  # it is sending, and soon waits for room
    os.kill(process, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
    theirs.setblocking(False)
    with pytest.raises(BlockingIOError):
        while True:
            received += len(theirs.recv(WHOLE))
    assert 0 < received < WHOLE
    assert sendmmsg.sent_bytes(note) == received


def test_a_slot_has_its_note_before_its_request(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    memory = new_memory("test", 64, 1)
    slots = Slots(memory, 64, room=36)
    request = nbd.REQUEST.pack(nbd.REQUEST_MAGIC, nbd.READ, HANDLE, 0, 512)
    theirs.sendall(request)
    taken = slots.take(ours.fileno(), note=b"note")
    assert taken is not None
    assert bytes(taken[1][:32]) == request + b"note"
    slots.clear(taken[0])
    theirs.close()
    taken = slots.take(ours.fileno(), note=b"more")
    assert taken is not None
    assert bytes(taken[1][:4]) == bytes(4)
    assert list(slots.left()) == []
    os.close(memory)
