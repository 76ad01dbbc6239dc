from __future__ import annotations

import pytest

from lamina.core.idmap import IdRange, parse_idmap
from lamina.core.mount import Mount
from lamina.errors import InvalidArgument, LaminaError, NotImplementedHere, ResourceExhausted
from lamina.linux.mountinfo import MountInfo, parse_mountinfo
from lamina.mount.failure import failure
from lamina.mount.operations import Bind, Filesystem, Fuse, Remount
from lamina.mount.options import parse_options
from lamina.mount.overlay import MAX_LOWER_DIRECTORIES, Overlay
from lamina.mount.plan import plan, plan_one
from lamina.mount.temp import without_volatile
from lamina.mount.unmounting import innermost_first


def overlay(*lower: str, options: tuple[str, ...] = ()) -> Mount:
    return Mount("overlay", "overlay", options=(f"lowerdir={':'.join(lower)}", *options))


@pytest.mark.parametrize(
    ("mount", "kind", "words"),
    [
        (Mount("bind", "/src", options=("rbind", "ro")), Bind, "bind /src"),
        (Mount("bind", "/src"), Bind, "bind /src"),
        (Mount("", "/src", options=("bind",)), Bind, "bind /src"),
        (
            Mount("ext4", "/img", options=("loop",)),
            Filesystem,
            "mount ext4 /img through a loop device",
        ),
        (Mount("tmpfs", "tmpfs"), Filesystem, "mount tmpfs tmpfs"),
        (Mount("", "", options=("remount", "ro")), Remount, "remount with remount,ro"),
        (Mount("fuse3.prog", "src"), Fuse, "mount fuse3.prog src"),
        (overlay("/a", "/b"), Overlay, "mount overlay of 2 lower directories"),
        (
            overlay("/a", options=("upperdir=/u", "workdir=/w")),
            Overlay,
            "mount overlay of 1 lower directory under /u",
        ),
    ],
)
def test_each_mount_becomes_its_operation(mount: Mount, kind: type, words: str) -> None:
    operation = plan_one(mount)
    assert type(operation) is kind
    assert operation.describe() == words


@pytest.mark.parametrize(
    ("mount", "words"),
    [
        (Mount("format/overlay", "overlay"), "transformations"),
        (Mount("bind", "/src", options=("rbind", "index=off")), "index=off"),
        (Mount("bind", "/src", options=("loop",)), "loop"),
        (Mount("ext4", "/img", options=("direct-io",)), "direct-io needs the option loop"),
        (Mount("overlay", "overlay", options=("upperdir=/u",)), "lowerdir="),
        (overlay("/a", "/b", options=("uidmap=0:1:1", "gidmap=0:1:1")), "common parent"),
        (overlay("a/b", "a/c", options=("uidmap=0:1:1", "gidmap=0:1:1")), "common parent"),
        (
            Mount("ext4", "/img", options=("private", "label=" + "x" * 256)),
            "excludes id maps and propagation",
        ),
    ],
)
def test_what_can_never_work_is_refused_before_anything_is_mounted(
    mount: Mount, words: str
) -> None:
    with pytest.raises(InvalidArgument, match=words):
        plan([Mount("tmpfs", "tmpfs"), mount])


def test_more_layers_than_the_kernel_takes() -> None:
    layers = [f"/s/{number}" for number in range(MAX_LOWER_DIRECTORIES + 1)]
    assert plan_one(overlay(*layers[:-1])).describe().startswith("mount overlay of 500")
    with pytest.raises(ResourceExhausted, match="501 lower directories"):
        plan_one(overlay(*layers))


def planned(mount: Mount) -> Overlay:
    return Overlay(mount, parse_options(mount))


def test_overlay_keeps_escapes_while_it_takes_layers_apart() -> None:
    operation = planned(overlay(r"/s\:x/1", r"/s\:x/2", options=("volatile",)))
    assert operation.lower == (r"/s\:x/1", r"/s\:x/2")
    assert operation.data == ("volatile",)
    assert operation.base == r"/s\:x"


@pytest.mark.parametrize(
    ("lower", "base"),
    [
        (("/s/1/fs", "/s/2/fs"), "/s"),
        (("/s/1/fs",), "/s/1"),
        (("/s/1", "/s/1/fs"), "/s"),
        (("/s/1", "/sx/1"), "/"),
        (("/s", "/t"), "/"),
        (("s/1", "s/2"), "."),
    ],
)
def test_base_is_a_strict_parent(lower: tuple[str, ...], base: str) -> None:
    assert planned(overlay(*lower)).base == base


def test_idmap_with_several_ranges() -> None:
    assert parse_idmap("0:1000:10,10:5000:1") == [IdRange(0, 1000, 10), IdRange(10, 5000, 1)]


@pytest.mark.parametrize(
    "text",
    ["", "0", "0:1", "0:1:2:3", "-1:0:1", "0:-1:1", "0:0:-1", "0:0:0", "a:0:1", "0:1:1,", "0: 1:1",
     "0:4294967295:1", "4294967295:0:1", "0:0:4294967296", "²:0:1",
     f"0:0:{'9' * 5000}"],
)  # fmt: skip
def test_bad_idmaps(text: str) -> None:
    with pytest.raises(InvalidArgument, match="parse id map"):
        parse_idmap(text)


def test_whole_id_space_is_a_valid_map() -> None:
    assert parse_idmap("0:0:4294967295") == [IdRange(0, 0, 4294967295)]


def test_volatile_goes_from_overlays_only_and_the_input_stays() -> None:
    mounts = [
        overlay("/a", options=("volatile", "fsync=volatile", "index=off")),
        overlay("/a", options=("volatile,index=off",)),
        Mount("tmpfs", "tmpfs", options=("volatile",)),
    ]
    kept = [mount.options for mount in mounts]
    assert [mount.options for mount in without_volatile(mounts)] == [
        ("lowerdir=/a", "index=off"),
        ("lowerdir=/a", "index=off"),
        ("volatile",),
    ]
    assert [mount.options for mount in mounts] == kept


MOUNTINFO = rb"""22 27 0:21 / /proc rw,relatime - proc proc rw
36 22 98:0 /a\040b /mnt/c\134d\011e rw,noatime master:1 shared:2 - fuse.x-y src\040z rw,opt=\054
"""


def test_mountinfo_escapes_and_optional_fields() -> None:
    first, second = parse_mountinfo(MOUNTINFO)
    assert first == MountInfo(
        22, 27, "0:21", "/", "/proc", ("rw", "relatime"), (), "proc", "proc", ("rw",)
    )
    assert second.root == "/a b"
    assert second.point == "/mnt/c\\d\te"
    assert second.propagation == ("master:1", "shared:2")
    assert (second.type, second.source) == ("fuse.x-y", "src z")
    assert second.super_options == ("rw", "opt=,")


def test_innermost_mounts_come_first_and_the_last_of_a_stack_before_it() -> None:
    points = ["/m", "/m/a", "/m/a/b", "/m/a", "/m/c"]
    mounts = [
        MountInfo(n, 0, "0:1", "/", point, (), (), "tmpfs", "", ())
        for n, point in enumerate(points)
    ]
    assert [info.id for info in innermost_first(mounts)] == [2, 4, 3, 1, 0]


@pytest.mark.parametrize(
    ("number", "kind"),
    [(22, InvalidArgument), (38, NotImplementedHere), (28, ResourceExhausted), (133, LaminaError)],
)
def test_failures_keep_the_operation_and_the_kernels_words(
    number: int, kind: type[LaminaError]
) -> None:
    error = failure(OSError(number, "the kernel's words"), "bind /a on /b")
    assert type(error) is kind
    assert "bind /a on /b: the kernel's words" in str(error)


def test_dmesg_is_only_named_where_the_kernel_said_nothing_itself() -> None:
    silent = failure(OSError(22, "Invalid argument"), "mount ext4 /a on /b")
    outspoken = failure(OSError(22, "Invalid argument (ext4: bad)"), "mount ext4 /a on /b")
    assert "dmesg" in silent.hint
    assert outspoken.hint == ""


def test_a_missing_layer_is_named() -> None:
    error = failure(FileNotFoundError(2, "gone", "/s/7/fs"), "mount overlay on /t")
    assert "mount overlay on /t: /s/7/fs: gone" in str(error)
