from __future__ import annotations

import ctypes
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina.errors import FormatError
from lamina.linux.dm import layout
from lamina.linux.dm.layout import DmIoctl, Listed, Target

UINT64 = st.integers(0, 2**64 - 1)
WORD = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1)
TARGETS = st.lists(
    st.builds(
        Target, UINT64, UINT64, WORD.map(lambda word: word[:15]), st.lists(WORD).map(" ".join)
    )
)


def test_sizes_of_structures() -> None:
    assert ctypes.sizeof(DmIoctl) == layout.HEADER_BYTES == 312
    assert layout.TARGET_SPEC.size == 40
    assert DmIoctl.name.offset == 48
    assert DmIoctl.uuid.offset == 176


def test_requests_are_those_of_the_header() -> None:
    assert layout.request(layout.DM_VERSION) == 0xC138FD00
    assert layout.request(layout.DM_TARGET_MSG) == 0xC138FD0E


def test_header() -> None:
    buffer = layout.pack(name="pool", flags=layout.DM_SUSPEND_FLAG, event_number=7, payload=b"abc")
    assert len(buffer) == 315
    assert struct.unpack_from("=3I2IIiII", buffer) == (4, 0, 0, 315, 312, 0, 0, 2, 7)
    assert buffer[48:53] == b"pool\0"
    assert buffer[312:] == b"abc"
    assert len(layout.pack(payload=b"abc", room=100)) == 412


@pytest.mark.parametrize("name", ["x" * 128, "a\0b"])
def test_name_that_no_device_can_have(name: str) -> None:
    with pytest.raises(ValueError, match="name, of at most 127 bytes"):
        layout.pack(name=name)


def test_info() -> None:
    header = DmIoctl(dev=0xFE03, open_count=2, event_nr=5, target_count=1, name=b"a", uuid=b"u")
    header.flags = layout.DM_ACTIVE_PRESENT_FLAG | layout.DM_READONLY_FLAG
    info = layout.parse_info(header)
    assert (info.name, info.uuid, info.number, info.open_count) == ("a", "u", 0xFE03, 2)
    assert (info.event_number, info.target_count) == (5, 1)
    assert (info.live, info.read_only) == (True, True)
    assert not (info.suspended or info.has_inactive_table or info.goes_when_closed)


def test_table() -> None:
    packed = layout.pack_targets([Target(0, 8, "thin", "253:0 12345"), Target(8, 1, "zero", "")])
    first = struct.pack("=QQiI16s", 0, 8, 0, 40 + 16, b"thin") + b"253:0 12345\0\0\0\0\0"
    second = struct.pack("=QQiI16s", 8, 1, 0, 40 + 8, b"zero") + bytes(8)
    assert packed == first + second


@given(TARGETS)
def test_table_round_trip(targets: list[Target]) -> None:
    """The kernel's answer differs from its argument in what `next` counts from."""
    answer = bytearray()
    for target in targets:
        record = bytearray(layout.pack_targets([target]))
        struct.pack_into("=I", record, 20, len(answer) + len(record))
        answer += record
    assert layout.parse_targets(bytes(answer), len(targets)) == targets


@pytest.mark.parametrize("length", range(0, 96, 7))
def test_answer_that_is_cut_off(length: int) -> None:
    packed = layout.pack_targets([Target(0, 8, "zero", ""), Target(8, 8, "zero", "")])
    with pytest.raises(FormatError, match=r"device-mapper's table .* 40 bytes"):
        layout.parse_targets(packed[: min(length, 80)], 2)


def test_list_of_devices() -> None:
    first = struct.pack("=QI", 0xFE00, 32) + b"pool\0" + bytes(15)
    second = struct.pack("=QI", 0xFE01, 0) + b"pool-snap-1\0" + bytes(40)
    assert layout.parse_names(first + second) == [
        Listed("pool", 0xFE00),
        Listed("pool-snap-1", 0xFE01),
    ]
    assert layout.parse_names(bytes(16)) == []
    with pytest.raises(FormatError, match="list of devices"):
        layout.parse_names(first)


def test_list_of_targets() -> None:
    first = struct.pack("=I3I", 24, 1, 22, 0) + b"thin\0\0\0\0"
    second = struct.pack("=I3I", 0, 1, 2, 3) + b"linear\0\0"
    assert layout.parse_versions(first + second) == {"thin": (1, 22, 0), "linear": (1, 2, 3)}


def test_dependencies() -> None:
    answer = struct.pack("=IIQQ", 2, 0, 0x700, 0x701)
    assert layout.parse_deps(answer + bytes(100)) == [0x700, 0x701]
    with pytest.raises(FormatError, match="dependencies"):
        layout.parse_deps(answer[:-1])


def test_message() -> None:
    assert layout.pack_message(3, "create_thin 1") == struct.pack("=Q", 3) + b"create_thin 1\0"
    assert layout.parse_text(b"said\0garbage") == "said"
