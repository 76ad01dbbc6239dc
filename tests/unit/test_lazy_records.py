from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

from lamina.errors import DataLoss, FormatError, LaminaError, NotFound, ToolError
from lamina.lazy import control
from lamina.lazy.served import ServedList
from lamina.linux import fanotify, fuse


@pytest.mark.parametrize(
    ("record", "size"),
    [
        (fanotify.EVENT, 24),
        (fanotify.RANGE, 24),
        (fanotify.RESPONSE, 8),
        (fuse.IN_HEADER, 40),
        (fuse.OUT_HEADER, 16),
        (fuse.INIT_OUT, 64),
        (fuse.ATTR, 88),
        (fuse.ENTRY_OUT, 128 - 88),
        (fuse.ATTR_OUT, 104 - 88),
        (fuse.OPEN_OUT, 16),
        (fuse.READ_IN, 40),
        (fuse.KSTATFS, 80),
        (fuse.DIRENT, 24),
    ],
)
def test_sizes_of_records(record: object, size: int) -> None:
    assert getattr(record, "size") == size  # noqa: B009


def _event(mask: int = fanotify.FAN_PRE_ACCESS, version: int = 3, length: int = 48) -> bytes:
    head = fanotify.EVENT.pack(length, version, 0, 24, mask, 7, 4711)
    return head + fanotify.RANGE.pack(6, 0, 24, 0, 65536, 4096)


def test_events() -> None:
    assert fanotify.parse_event(_event()) == (7, 4711, 65536, 4096)
    assert fanotify.parse_event(_event(length=24)) == (7, 4711, 0, 0)
    other = fanotify.EVENT.pack(56, 3, 0, 24, fanotify.FAN_PRE_ACCESS, 7, 1)
    other += b"\x04\x00\x08\x00" + bytes(4) + fanotify.RANGE.pack(6, 0, 24, 0, 1, 2)
    assert fanotify.parse_event(other) == (7, 1, 1, 2)


@pytest.mark.parametrize("event", [_event(mask=1), _event(version=4), _event(length=49)])
def test_events_of_another_kind_are_refused(event: bytes) -> None:
    with pytest.raises(OSError, match="fanotify event") as caught:
        fanotify.parse_event(event)
    assert caught.value.errno == errno.EPROTO


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (NotFound("lazy layer", "x", hint="look"), NotFound),
        (FormatError("erofs", 3, expected="a", got="b"), DataLoss),
        (ToolError(["false"], 1, ""), LaminaError),
    ],
)
def test_errors_cross_the_socket(error: LaminaError, kind: type[LaminaError]) -> None:
    found = control.decode_error(control.encode_error(error))
    assert isinstance(found, kind)
    assert (found.what, found.subject, found.hint) == (error.what, error.subject, error.hint)
    assert found.exit_code == error.exit_code


def test_a_line_that_does_not_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "LINE_BYTES", 10)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"one\n")
        assert control.read_line(ours) == b"one"
        theirs.sendall(b"x" * 11)
        with pytest.raises(OSError, match="too long"):
            control.read_line(ours)


def test_what_is_served_is_there_for_the_next_worker(tmp_path: Path) -> None:
    served = ServedList(tmp_path)
    one = served.add(tmp_path / "one", "a:b", "fuse")
    two = served.add(tmp_path / "two", "a:b", "fanotify")
    served.doubt(two.number)
    served.remove(one.number)
    again = ServedList(tmp_path)
    assert [(layer.number, layer.doubt) for layer in again.layers] == [(2, True)]
    assert again.find(tmp_path / "one") is None
    assert again.add(tmp_path / "three", "a:b", "fuse").number == 3
    assert [path.name for path in tmp_path.iterdir()] == ["layers.json"]


def test_layers_of_an_earlier_boot_are_not_served(tmp_path: Path) -> None:
    served = ServedList(tmp_path)
    layer = served.add(tmp_path / "one", "a:b", "fanotify")
    path = tmp_path / "layers.json"
    path.write_text(path.read_text().replace(layer.boot, "another"))
    assert ServedList(tmp_path).layers == []


def test_a_damaged_list_is_told(tmp_path: Path) -> None:
    (tmp_path / "layers.json").write_bytes(b"{")
    with pytest.raises(FormatError, match=os.fspath(tmp_path)):
        ServedList(tmp_path)
