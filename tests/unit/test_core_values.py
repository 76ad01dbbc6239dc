"""Sizes and durations as text, and what makes a mount read-only."""

from __future__ import annotations

import pytest

from lamina.core.mount import Mount, read_only_mounts
from lamina.core.units import format_size, parse_duration, parse_size
from lamina.errors import InvalidArgument


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0), ("4096", 4096), ("128Mb", 134217728), ("32KIB", 32768), ("1.5g", 1610612736),
        (".5 k", 512), ("512 MiB", 512 << 20), ("2.b", 2), (" 1t ", 1 << 40),
        ("9007199254740993", 9007199254740993), ("8191p", 8191 << 50),
    ],
)  # fmt: skip
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "y", "10xb", "-1", ".", "1  k", "1e3", "0x10", "\u0661", "8192p", "9" * 400]
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InvalidArgument, match="parse size"):
        parse_size(text)


def test_sizes_are_written_as_ctr_does() -> None:
    assert [format_size(n) for n in (0, 1023, 1024, 12595, 5 << 30, 1 << 53)] == [
        "0.0 B", "1023.0 B", "1.0 KiB", "12.3 KiB", "5.0 GiB", "8.0 PiB",
    ]  # fmt: skip


LOWER = "lowerdir=/1:/2"


@pytest.mark.parametrize(
    ("type", "options", "expected"),
    [
        ("bind", ("rbind", "rw"), False),
        ("bind", ("rbind", "ro"), True),
        ("bind", ("rbind,ro",), True),
        ("ext4", ("loop",), False),
        ("format/erofs", (), True),
        ("overlay", (LOWER,), True),
        ("overlay", (LOWER, "upperdir=/u"), False),
        ("overlay", ("workdir=/w,upperdir=/u," + LOWER,), False),
        ("overlay", (LOWER, r"upperdir=/a\,ro"), False),
        ("fuse3.fuse-overlayfs", (LOWER,), True),
        ("fuse3.fuse-overlayfs", (LOWER, "upperdir=/u"), False),
        ("fuse3.sshfs", (), False),
    ],
)
def test_what_is_read_only(type: str, options: tuple[str, ...], expected: bool) -> None:
    assert Mount(type, "", options=options).read_only is expected


@pytest.mark.parametrize(
    ("type", "options", "expected"),
    [
        ("bind", ("rw", "rbind"), ("rbind", "ro")),
        ("bind", ("rw,rbind",), ("rbind", "ro")),
        ("ext4", ("ro", "loop"), ("loop", "ro")),
        ("overlay", (LOWER, "index=off"), (LOWER, "index=off")),
        (
            "overlay",
            ("uidmap=0:1:2,9:9:9", "gidmap=0:1:2", "workdir=/w", "upperdir=/u", LOWER, "volatile"),
            ("lowerdir=/u:/1:/2",),
        ),
        (
            "overlay",
            ("workdir=/w,upperdir=/u," + LOWER + ",index=off",),
            ("lowerdir=/u:/1:/2", "index=off"),
        ),
        ("overlay", (r"upperdir=/a\,b", LOWER), (r"lowerdir=/a\,b:/1:/2",)),
        (
            "fuse3.fuse-overlayfs",
            ("workdir=/w", "upperdir=/u", LOWER, "uidmapping=0:1:2"),
            ("lowerdir=/u:/1:/2", "uidmapping=0:1:2"),
        ),
    ],
)
def test_read_only_mounts(type: str, options: tuple[str, ...], expected: tuple[str, ...]) -> None:
    [mount] = read_only_mounts([Mount(type, "s", "t", options)])
    assert mount == Mount(type, "s", "t", expected)
    assert mount.read_only


@pytest.mark.parametrize(
    ("mount", "expected"),
    [
        (
            Mount("overlay", "overlay", "", ("lowerdir=/1:/2", "index=off")),
            "mount -t overlay overlay /at -o lowerdir=/1:/2,index=off",
        ),
        (Mount("btrfs", "/dev/a b", "sub", ()), "mount -t btrfs '/dev/a b' /at/sub"),
        (
            Mount("fuse3.fuse-overlayfs", "overlay", "", ("lowerdir=/1:/a b",)),
            "mount.fuse3 overlay /at -o 'lowerdir=/1:/a b' -t fuse-overlayfs",
        ),
    ],
)
def test_commands_that_mount(mount: Mount, expected: str) -> None:
    assert mount.command("/at") == expected


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("90s", 90), ("1h30m", 5400), ("24h0m0s", 86400), ("1.5s", 1.5), ("250ms", 0.25)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "1d", "-1s", "1 h", "h", "1h!", "1s2", "876001h"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(InvalidArgument, match="parse duration"):
        parse_duration(text)
