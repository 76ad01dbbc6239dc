"""What images may not do to whoever makes and mounts their devices."""

from __future__ import annotations

import errno
from array import array
from pathlib import Path

import pytest

from lamina.errors import DataLoss, FailedPrecondition, ResourceExhausted
from lamina.formats.lsmt.layout import FIRST_SECTOR, MAX_LENGTH, About
from lamina.formats.lsmt.mappings import Mappings
from lamina.formats.lsmt.reader import Layer
from lamina.formats.lsmt.stack import Stack
from lamina.formats.overlaybd.trace import NAME, Access, write_trace
from lamina.lazy.unit_list import WANTED
from lamina.snapshotters.lazy_access import Access as RegistryAccess
from lamina.snapshotters.overlaybd import device, prefetch
from lamina.snapshotters.overlaybd.check import device_problem
from lamina.snapshotters.overlaybd.kept_source import KeptSource
from lamina.snapshotters.overlaybd.mounting import mount_device
from lamina.snapshotters.overlaybd.notes import (
    BACKING,
    DEVICE,
    BackingNote,
    read_backing,
    write_note,
)
from lamina.snapshotters.overlaybd.unpacked import note_of_files
from tests.erofs import Bytes


def repeating(count: int) -> Stack:
    """Return a device all of which is one piece of a small file, over and over."""
    starts = array("Q", range(0, MAX_LENGTH * count, MAX_LENGTH))
    lengths, places = array("H", [MAX_LENGTH]) * count, array("Q", [FIRST_SECTOR]) * count
    about = About(MAX_LENGTH * count * 512)
    return Stack([Layer(Bytes(b""), about, Mappings(starts, lengths, places))])


def test_a_few_mappings_do_not_make_a_table_without_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "MAX_WINDOWS", 100)
    assert device.make_cache(repeating(3), tmp_path / "small", "fuse")
    with pytest.raises(ResourceExhausted, match="more than 100 windows"):
        device.make_cache(repeating(4), tmp_path / "large", "fuse")
    assert not (tmp_path / "large").exists()


def test_filesystem_that_takes_no_file_of_that_size_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EFBIG, "File too large")

    monkeypatch.setattr(device, "create_layer", refuse)
    with pytest.raises(ResourceExhausted, match="such as XFS"):
        device.make_cache(repeating(1), tmp_path / "device", "fuse")


def test_trace_of_the_same_again_and_again_is_looked_at_in_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefetch, "_MAX_UNITS", 10)
    stack = repeating(3)
    device.make_cache(stack, tmp_path / "device", "fuse")
    trace = tmp_path / "trace"
    trace.write_bytes(write_trace([Access(0, 0, 1 << 30)] * 100))
    assert prefetch.want_traced(trace, stack, tmp_path / "device")
    assert (tmp_path / "device" / WANTED).exists()


def test_device_without_a_filesystem_is_told_of(tmp_path: Path) -> None:
    file = tmp_path / "device"
    file.write_bytes(bytes(8192))
    with pytest.raises(FailedPrecondition, match="find a filesystem on the device"):
        mount_device(str(file), tmp_path, "ext4")


@pytest.mark.parametrize("target", ["/dev/zero", "other"])
def test_trace_is_no_link(tmp_path: Path, target: str) -> None:
    (tmp_path / NAME.decode()).symlink_to(target)
    labels = {"containerd.io/snapshot/overlaybd/acceleration-layer": "yes"}
    assert note_of_files(tmp_path, labels, RegistryAccess()) is None


def test_damaged_notes_are_told_of(tmp_path: Path) -> None:
    (tmp_path / DEVICE).write_bytes(b"")
    problem = device_problem(1, tmp_path, tmp_path / "device", deep=False)
    assert problem
    assert DEVICE in problem.what


def test_what_a_device_was_mounted_from_may_be_lost(tmp_path: Path) -> None:
    assert read_backing(tmp_path) == BackingNote()
    write_note(tmp_path, BACKING, BackingNote(("/a",)))
    assert read_backing(tmp_path) == BackingNote(("/a",))
    (tmp_path / BACKING).write_bytes(b"")
    assert read_backing(tmp_path) == BackingNote()


def test_kept_parts_that_are_gone_are_data_loss(tmp_path: Path) -> None:
    with pytest.raises(DataLoss, match="pull the image again"):
        KeptSource(tmp_path / "kept", Bytes(b""))
