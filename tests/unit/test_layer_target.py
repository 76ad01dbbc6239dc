from __future__ import annotations

from pathlib import Path

import pytest

from lamina.core.mount import Mount
from lamina.layer.target import LayerTarget, layer_target

BIND = Mount("bind", "/s/1/fs", "", ("rw", "rbind"))


def overlay(*options: str) -> Mount:
    return Mount("overlay", "overlay", "", options)


def fuse(*options: str) -> Mount:
    return Mount("fuse3.fuse-overlayfs", "overlay", "", options)


def test_a_bind_is_its_source() -> None:
    assert layer_target([BIND], rebase=False) == LayerTarget(Path("/s/1/fs"), False)
    target = layer_target([BIND], rebase=True)
    assert target is not None
    assert (target.root, target.overlay_whiteouts, target.parents) == (Path("/s/1/fs"), True, ())


def test_an_overlay_is_its_upper_directory() -> None:
    mount = overlay(
        "index=off", "workdir=/s/3/work", "upperdir=/s/3/fs", "lowerdir=/s/2/fs:/s/1/fs"
    )
    for rebase in (False, True):
        target = layer_target([mount], rebase=rebase)
        assert target is not None
        assert (target.root, target.overlay_whiteouts) == (Path("/s/3/fs"), True)
        assert target.parents == (Path("/s/2/fs"), Path("/s/1/fs"))


def test_a_fuse_overlayfs_is_its_upper_directory() -> None:
    mount = fuse("workdir=/s/3/work", "upperdir=/s/3/fs", "lowerdir=/s/2/fs:/s/1/fs")
    parents = (Path("/s/2/fs"), Path("/s/1/fs"))
    target = layer_target([mount], rebase=False)
    assert target is not None
    assert (target.root, target.overlay_whiteouts, target.parents) == (
        Path("/s/3/fs"),
        True,
        parents,
    )


def test_escapes_in_paths() -> None:
    target = layer_target([overlay(r"upperdir=/a\,b\:c", r"lowerdir=/x\:y:/z\\w")], rebase=False)
    assert target is not None
    assert target.root == Path("/a,b:c")
    assert target.parents == (Path("/x:y"), Path("/z\\w"))


def test_options_may_be_joined() -> None:
    target = layer_target([overlay("upperdir=/u,lowerdir=/a:/b,userxattr")], rebase=False)
    assert target == LayerTarget(Path("/u"), True, (Path("/a"), Path("/b")), True)


@pytest.mark.parametrize(
    "mounts",
    [
        [],
        [BIND, BIND],
        [Mount("bind", "/s", "", ("ro", "rbind"))],
        [Mount("bind", "/s", "sub", ("rw", "rbind"))],
        [overlay("lowerdir=/a:/b")],
        [Mount("ext4", "/dev/x", "", ("rw",))],
        [Mount("bind", "/s", "", ("rw", "rbind", "uidmap=0:1000:1", "gidmap=0:1000:1"))],
        [fuse("lowerdir=/a:/b")],
        [fuse("upperdir=/u", "lowerdir=/l", "uidmapping=0:1:1", "gidmapping=0:1:1")],
        [Mount("aufs", "none", "", ("dio", "br:/u=rw:/l=ro+wh"))],
    ],
)
def test_what_has_to_be_mounted(mounts: list[Mount]) -> None:
    assert layer_target(mounts, rebase=True) is None
