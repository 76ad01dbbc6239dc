from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from lamina.lazy.slots import Slots, new_memory

SIZE = 64


def _request(number: int) -> bytes:
    return struct.pack("=II", 8, number)


@pytest.fixture
def pipe() -> tuple[int, int]:
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC | os.O_DIRECT)  # keeps messages apart
    return reader, writer


def test_what_is_taken_and_not_cleared_is_there_for_the_next(pipe: tuple[int, int]) -> None:
    memory = new_memory("test", SIZE, 3)
    slots = Slots(memory, SIZE)
    for number in range(4):
        os.write(pipe[1], _request(number))
    taken = [slots.take(pipe[0]) for _ in range(3)]
    assert [bytes(slot[:8]) for found in taken if found for slot in found[1:]] == [
        _request(number) for number in range(3)
    ]
    assert slots.is_full
    assert taken[1] is not None
    slots.clear(taken[1][0])

    left = {index: bytes(slot[:8]) for index, slot in Slots(memory, SIZE).left()}
    assert sorted(left.values()) == [_request(0), _request(2)]
    again = Slots(memory, SIZE)
    found = again.take(pipe[0])
    assert found is not None
    assert found[0] not in left
    assert bytes(found[1][:8]) == _request(3)
    assert again.is_full
    os.close(memory)


def test_nothing_to_take_leaves_the_slot_free(pipe: tuple[int, int]) -> None:
    memory = new_memory("test", SIZE, 1)
    slots = Slots(memory, SIZE, room=16)
    assert slots.take(pipe[0]) is None
    assert not slots.is_full
    os.write(pipe[1], b"\x01" * SIZE)
    found = slots.take(pipe[0])
    assert found is not None
    assert bytes(found[1]) == b"\x01" * 48 + bytes(16)  # the room is the owner's
    os.close(memory)


def test_other_errors_are_told(tmp_path: Path) -> None:
    memory = new_memory("test", SIZE, 1)
    slots = Slots(memory, SIZE)
    directory = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(IsADirectoryError):
        slots.take(directory)
    assert not slots.is_full
    os.close(directory)
    os.close(memory)


def test_no_page_of_a_slot_is_missing_when_it_is_read_into(pipe: tuple[int, int]) -> None:
    memory = new_memory("test", 1 << 16, 3)
    slots = Slots(memory, 1 << 16)
    os.write(pipe[1], _request(1))
    before = os.fstat(memory).st_blocks
    assert slots.take(pipe[0]) is not None
    assert os.fstat(memory).st_blocks - before >= (1 << 16) // 512 - 8  # one was looked at before
