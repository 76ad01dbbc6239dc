from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.core.mount import Mount
from lamina.errors import FailedPrecondition, InvalidArgument, LaminaError, NotFound, ToolError
from lamina.linux.mountinfo import MountInfo, mounts_at_or_below
from lamina.mount import mount_all, temp_mount, unmount, unmount_all, unmount_recursive

pytestmark = pytest.mark.root


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "target"
    path.mkdir()
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    (path / "inner").mkdir(parents=True)
    (path / "file").write_text("content")
    return path


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lamina.mount.unmounting.BUSY_SECONDS", 0.1)


@pytest.fixture
def cleanup(tmp_path: Path) -> Iterator[None]:
    """For tests that must leave mounts behind while they run."""
    yield
    unmount_recursive(tmp_path)


def only_mount(path: Path) -> MountInfo:
    (info,) = mounts_at_or_below(path)
    return info


def bind(source: Path, *options: str, target: str = "") -> Mount:
    return Mount("bind", str(source), target, options or ("rbind", "rw"))


def test_bind_and_back(source: Path, target: Path) -> None:
    mounts = [bind(source)]
    mount_all(mounts, target)
    (target / "new").touch()
    unmount_all(mounts, target)
    assert (source / "new").exists()
    assert not list(target.iterdir())
    unmount_all(mounts, target)


def test_bind_of_a_file(source: Path, tmp_path: Path) -> None:
    point = tmp_path / "point"
    point.touch()
    mounts = [bind(source / "file", "bind", "ro")]
    mount_all(mounts, point)
    assert point.read_text() == "content"
    unmount_all(mounts, point)


def test_read_only_bind_is_read_only_below_as_well(source: Path, target: Path) -> None:
    inner = [Mount("tmpfs", "tmpfs")]
    mount_all(inner, source / "inner")
    mounts = [bind(source, "ro", "rbind")]
    mount_all(mounts, target)
    for path in (target / "x", target / "inner/x"):
        with pytest.raises(OSError, match="Read-only"):
            path.touch()
    (source / "x").touch()
    (source / "inner/x").touch()
    unmount_recursive(target)
    unmount_all(inner, source / "inner")


def test_attributes_of_a_bind(source: Path, target: Path) -> None:
    mounts = [bind(source, "bind", "nosuid", "nodev", "noexec", "noatime")]
    mount_all(mounts, target)
    assert {"nosuid", "nodev", "noexec", "noatime"} <= set(only_mount(target).options)
    unmount_all(mounts, target)


def test_remount_of_a_bind_changes_only_that_mount(source: Path, target: Path) -> None:
    mounts = [bind(source, "bind", "nosuid"), Mount("", "", "", ("remount", "bind", "ro"))]
    mount_all(mounts, target)
    assert {"ro", "nosuid"} <= set(only_mount(target).options)
    (source / "still-writable").touch()
    mount_all([Mount("", "", "", ("remount,bind,rw,suid",))], target)
    assert not {"ro", "nosuid"} & set(only_mount(target).options)
    unmount_all(mounts, target)
    assert not mounts_at_or_below(target)


def test_remount_of_a_filesystem(target: Path) -> None:
    mounts = [Mount("tmpfs", "x", "", ("size=64k",)), Mount("tmpfs", "x", "", ("remount", "ro"))]
    mount_all(mounts, target)
    assert "ro" in only_mount(target).super_options
    unmount_all(mounts, target)


def test_filesystem_options_reach_the_filesystem(target: Path) -> None:
    mounts = [Mount("tmpfs", "scratch", "", ("size=64k,mode=700", "nodev", "noatime", "ro"))]
    mount_all(mounts, target)
    info = only_mount(target)
    assert (info.type, info.source) == ("tmpfs", "scratch")
    assert {"size=64k", "mode=700", "ro"} <= set(info.super_options)
    assert {"nodev", "noatime", "ro"} <= set(info.options)
    unmount_all(mounts, target)


def test_strings_too_long_for_fsconfig_go_the_old_way(target: Path) -> None:
    source = "s" * 300
    mounts = [Mount("tmpfs", source, "", ("size=64k", "nosuid"))]
    mount_all(mounts, target)
    info = only_mount(target)
    assert info.source == source
    assert "nosuid" in info.options
    unmount_all(mounts, target)


def test_options_beyond_a_page_are_not_cut_off(target: Path) -> None:
    with pytest.raises(InvalidArgument, match="the options have 5003 bytes, over 4095"):
        mount_all([Mount("tmpfs", "x", "", ("ro", "a=1", f"label={'x' * 4993}"))], target)


@pytest.mark.parametrize(
    ("word", "fields"),
    [("shared", ["shared"]), ("private", []), ("unbindable", ["unbindable"])],
)
def test_propagation_of_a_filesystem(target: Path, word: str, fields: list[str]) -> None:
    mounts = [Mount("tmpfs", "x", "", (word,))]
    mount_all(mounts, target)
    assert [name.partition(":")[0] for name in only_mount(target).propagation] == fields
    unmount_all(mounts, target)


def test_recursive_propagation_of_a_bind(source: Path, target: Path) -> None:
    inner = [Mount("tmpfs", "x", "", ("shared",))]
    mount_all(inner, source / "inner")
    plain, words = [bind(source, "rbind")], [bind(source, "rbind", "rslave")]
    mount_all(plain, target)
    fields = [info.propagation for info in mounts_at_or_below(target / "inner")]
    assert fields[0][0].startswith("shared:")
    unmount_recursive(target)
    mount_all(words, target)
    fields = [info.propagation for info in mounts_at_or_below(target / "inner")]
    assert fields[0][0].startswith("master:")
    unmount_recursive(target)
    unmount_all(inner, source / "inner")


def test_submounts_go_into_what_was_mounted_before(source: Path, target: Path) -> None:
    (source / "etc").mkdir()
    mounts = [
        bind(source),
        Mount("tmpfs", "x", "/inner", ("mode=755",)),
        bind(source / "file", "bind", "ro", target="file"),
    ]
    mount_all(mounts, target)
    points = [Path(info.point) for info in mounts_at_or_below(target)]
    assert points == [target, target / "inner", target / "file"]
    unmount_all(mounts, target)
    assert not mounts_at_or_below(target)


@pytest.mark.parametrize("link", ["/outside", "../../../../../outside", "/loop/outside"])
def test_a_hostile_link_leads_to_a_place_inside(source: Path, target: Path, link: str) -> None:
    (source / "outside").mkdir()
    (source / "loop").symlink_to("/")
    (source / "link").symlink_to(link)
    mounts = [bind(source), Mount("tmpfs", "x", "/link")]
    mount_all(mounts, target)
    assert [info.point for info in mounts_at_or_below(target)][1] == str(target / "outside")
    unmount_all(mounts, target)


def test_an_absolute_link_to_an_existing_place_outside(
    source: Path, target: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (source / "link").symlink_to(outside)
    with pytest.raises(NotFound, match=f"{target}/link"):
        mount_all([bind(source), Mount("tmpfs", "x", "/link")], target)
    assert not mounts_at_or_below(tmp_path)


def test_magic_links_are_not_followed(target: Path) -> None:
    descriptor = os.open("/", os.O_PATH)
    proc = [Mount("proc", "proc")]
    try:
        with pytest.raises(LaminaError, match="symbolic links"):
            mount_all([*proc, Mount("tmpfs", "x", f"/self/fd/{descriptor}")], target)
    finally:
        os.close(descriptor)
    assert not mounts_at_or_below(target)


def test_a_helper_that_fails_late_leaves_no_mount(
    tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper = tmp_path / "bin/mount.fuse3"
    helper.parent.mkdir()
    helper.write_text('#!/bin/sh\nmount -t tmpfs x "$2"\necho too late >&2\nexit 5\n')
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{helper.parent}:{os.environ['PATH']}")
    with pytest.raises(ToolError, match="too late"):
        mount_all([Mount("fuse3.program", "x")], target)
    assert not mounts_at_or_below(target)


BROKEN = [
    Mount("bind", "/nonexistent", "", ("rbind",)),
    Mount("tmpfs", "x", "/nowhere"),
    Mount("tmpfs", "x", "", ("no-such-option",)),
    Mount("ext4", "/dev/null"),
    Mount("no-such-filesystem", "x"),
    Mount("ext4", "/nonexistent", "", ("loop",)),
    Mount("overlay", "overlay", "", ("lowerdir=/nonexistent/1:/nonexistent/2",)),
    Mount("overlay", "overlay", "", ("lowerdir=/proc:/sys", "uidmap=0:1:1", "gidmap=0:1:1")),
    Mount("bind", "/proc", "", ("bind", "uidmap=0:1:1", "gidmap=0:1:1")),
    Mount("fuse3.no-such-program", "x"),
]


@pytest.mark.parametrize("broken", BROKEN, ids=lambda mount: f"{mount.type}-{mount.source}")
def test_an_error_in_the_middle_leaves_nothing(source: Path, target: Path, broken: Mount) -> None:
    before = mounts_at_or_below("/")
    descriptors = os.listdir("/proc/self/fd")
    good = [bind(source), Mount("tmpfs", "x", "/inner")]
    with pytest.raises(LaminaError):
        mount_all([*good, broken], target)
    assert mounts_at_or_below("/") == before
    assert os.listdir("/proc/self/fd") == descriptors


def test_the_kernels_own_words_are_in_the_error(target: Path) -> None:
    with pytest.raises(InvalidArgument, match=f"mount tmpfs x on {target}: .*'no-such-option'"):
        mount_all([Mount("tmpfs", "x", "", ("no-such-option",))], target)


def test_missing_target_is_not_made(source: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        mount_all([bind(source)], tmp_path / "missing")
    assert not (tmp_path / "missing").exists()


def test_busy_mount_names_its_user(target: Path) -> None:
    mounts = [Mount("tmpfs", "x")]
    mount_all(mounts, target)
    with open(target / "file", "w"), pytest.raises(FailedPrecondition, match=f"pid {os.getpid()}"):
        unmount_all(mounts, target)
    unmount_all(mounts, target)


def test_busy_mount_names_the_mounts_inside(source: Path, target: Path) -> None:
    mounts = [Mount("tmpfs", "x")]
    mount_all(mounts, target)
    (target / "inner").mkdir()
    mount_all(mounts, target / "inner")
    with pytest.raises(FailedPrecondition, match=f"unmount {target}/inner first"):
        unmount(target)
    unmount_recursive(target)


def test_unmount_of_what_is_not_mounted(target: Path, tmp_path: Path) -> None:
    unmount(target)
    unmount(tmp_path / "missing")
    unmount_recursive(tmp_path / "missing")


def test_unmount_does_not_follow_a_link(target: Path, tmp_path: Path) -> None:
    mounts = [Mount("tmpfs", "x")]
    mount_all(mounts, target)
    (tmp_path / "link").symlink_to(target)
    unmount(tmp_path / "link")
    assert mounts_at_or_below(target)
    unmount_all(mounts, target)


def test_unmount_recursive_takes_stacks_and_covered_mounts(target: Path) -> None:
    mount_all([Mount("tmpfs", "below")], target)
    (target / "covered").mkdir()
    mount_all([Mount("tmpfs", "covered")], target / "covered")
    mount_all([Mount("tmpfs", "above")], target)
    unmount_recursive(target)
    assert not mounts_at_or_below(target)


def test_unmount_recursive_passes_over_the_busy(target: Path) -> None:
    for name in ("a", "b", "c"):
        (target / name).mkdir()
        mount_all([Mount("tmpfs", "x")], target / name)
    with open(target / "b/file", "w"), pytest.raises(FailedPrecondition, match=f"{target}/b"):
        unmount_recursive(target)
    assert only_mount(target).point == str(target / "b")
    unmount_recursive(target)


def test_temporary_mount(source: Path, tmp_path: Path) -> None:
    with temp_mount([bind(source)], dir=tmp_path) as point:
        assert point.parent == tmp_path
        assert (point / "file").read_text() == "content"
    assert not point.exists()
    assert (source / "file").exists()


def test_temporary_mount_read_only(source: Path, tmp_path: Path) -> None:
    with (
        temp_mount([bind(source)], dir=tmp_path, read_only=True) as point,
        pytest.raises(OSError, match="Read-only"),
    ):
        (point / "x").touch()


def test_temporary_mount_goes_after_an_error_of_the_body(source: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyError), temp_mount([bind(source)], dir=tmp_path) as point:
        raise KeyError
    assert not point.exists()


def test_failed_temporary_mount_leaves_no_directory(tmp_path: Path) -> None:
    with pytest.raises(LaminaError), temp_mount([Mount("no-such", "x")], dir=tmp_path):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("cleanup")
def test_nothing_is_deleted_through_a_stuck_mount(source: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(FailedPrecondition, match="unmount"),
        temp_mount([bind(source)], dir=tmp_path) as point,
    ):
        held = os.open(point, os.O_PATH)
    os.close(held)
    assert (point / "file").read_text() == "content"


def test_the_error_of_the_body_is_not_masked_by_a_stuck_mount(
    source: Path, tmp_path: Path, cleanup: None, caplog: pytest.LogCaptureFixture
) -> None:
    held = -1
    try:
        with pytest.raises(KeyError), temp_mount([bind(source)], dir=tmp_path) as point:
            held = os.open(point, os.O_PATH)
            raise KeyError
    finally:
        os.close(held)
    assert "a temporary mount stays" in caplog.text


def test_bind_of_a_device_node_keeps_it(tmp_path: Path) -> None:
    point = tmp_path / "null"
    point.touch()
    mounts = [Mount("bind", "/dev/null", "", ("bind",))]
    mount_all(mounts, point)
    assert stat.S_ISCHR(point.stat().st_mode)
    unmount_all(mounts, point)
