"""An image that is hard to copy, unpacked by a store, and what of it a snapshotter has."""

from __future__ import annotations

import io

from lamina.core.digest import Digest
from lamina.core.snapshot import Kind
from lamina.images.migration import Migrated
from lamina.images.platform import default_platform
from lamina.mount import temp_mount
from lamina.store import Store
from tests.archives import Archive
from tests.containerd.test_same_rootfs import CAPABILITY
from tests.images import OCI_LAYER, Layer, digest, image
from tests.kernel.test_archive import layout, pack
from tests.trees import Entry, describe

NAME = "docker.io/library/hard:1"
PROJECT_ID = 4_000_000_000
"""An owner that no user namespace maps."""


def layer(archive: Archive) -> Layer:
    data = archive.data()
    return Layer(data, digest(data), OCI_LAYER)


def xattrs(**values: bytes) -> dict[str, str]:
    return {f"SCHILY.xattr.{key.replace('__', '.')}": v.decode() for key, v in values.items()}


def hard_image(*, sparse: bool = True) -> tuple[Layer, ...]:
    """Layers with everything that is easily lost between two file systems.

    `sparse` is whether a file has holes, in a way that Go's reader of archives refuses.
    """
    base = Archive()
    for name in ("etc", "opaque", "gone", "again", "renewed", "becomes-file", "links"):
        base.dir(name)
    base.dir("tmp", 0o1777).dir("home", 0o750, uid=1000, gid=1000)
    base.file("bin", b"#!/bin/sh\n" * 10_000, 0o4755, mtime=1_500_000_000.125)
    base.file("ping", b"ping", 0o755, pax_headers=xattrs(security__capability=CAPABILITY))
    base.file("etc/noted", b"x", mtime=1, pax_headers=xattrs(user__note=b"one two"))
    base.file("etc/\u5c42-" + "long" * 40, b"a long name", mtime=4_000_000_000)
    base.file("etc/foreign", b"of nobody here", uid=PROJECT_ID, gid=PROJECT_ID + 1)
    base.symlink("dangling", "/no/where", uid=5, gid=6).symlink("lib", "etc")
    base.entry("home/pipe", b"6", mode=0o600)
    base.entry("home/null", b"3", mode=0o666, devmajor=1, devminor=3)
    base.entry("home/disk", b"4", mode=0o660, devmajor=259, devminor=70_000)
    for name in ("opaque/old", "gone/a", "again/old", "renewed/old", "becomes-file/inside"):
        base.file(name, name)
    base.file("becomes-directory", "becomes-directory")
    base.file("links/a", b"linked").link("links/b", "links/a").link("links/c", "links/a")
    base.file("links/same1", b"alike").file("links/same2", b"alike")
    # The file has what the last of its names says.
    base.file("links/first", b"first", 0o600).link("links/last", "links/first", uid=7, mtime=77)
    holes = {"GNU.sparse.map": "1048576,4096,4194304,4096", "GNU.sparse.size": str(8 << 20)}
    if sparse:
        base.file("sparse", b"s" * 8192, pax_headers=holes)

    changes = Archive()
    changes.file(".wh.gone").dir("opaque", 0o700).file("opaque/.wh..wh..opq").file("opaque/new")
    changes.file(".wh.again").file("becomes-file", b"a file now")
    changes.file(".wh.renewed").dir("renewed").file("renewed/new")
    changes.dir("becomes-directory").file("becomes-directory/inside", b"inside")
    # The name alone goes its own way; the bytes, the size and the time stay.
    changes.file("links/b", b"linked")
    # Two files become one.
    changes.file("links/same1", b"alike").link("links/same2", "links/same1")
    changes.file("etc/.wh.noted")

    times = Archive()
    times.dir("etc", mtime=1_400_000_000).dir("home", 0o700, uid=1001, gid=1001, mtime=5)
    times.dir("again", mtime=7).file("again/new", b"back").dir("gone", 0o711)
    times.file("links/c", b"LINKED").file("bin", b"#!/bin/xx\n" * 10_000, 0o755)

    # Unpacking leaves the root as it is.
    last = (
        Archive()
        .dir(".", 0o711, uid=7, mtime=8)
        .dir("implied/")
        .file("implied/deep/er/file", b"deep")
        .file("empty")
    )
    return layer(base), layer(changes), layer(times), layer(last)


def load_image(
    store: Store, name: str, *layers: Layer, ref: str = NAME, keep: bool = False
) -> None:
    """Unpack an image, and drop the blobs of its layers."""
    annotations = {"io.containerd.image.name": ref}
    archive = pack(layout(image(*layers), annotations=annotations))
    store.import_images(io.BytesIO(archive), snapshotter=name)
    if not keep:
        drop_blobs(store, *layers)


def drop_blobs(store: Store, *layers: Layer) -> None:
    for each in {each.digest for each in layers}:
        store.images.content.delete(Digest(each))


def chain(store: Store, ref: str = NAME) -> list[str]:
    """Return the chain ids of an image, base first."""
    return list(store.images.select(store.image(ref), default_platform()).chain)


def tree(store: Store, name: str, chain_id: str) -> dict[str, Entry]:
    engine = store.snapshotter(name)
    mounts = engine.view("look", chain_id)
    try:
        with temp_mount(mounts, dir=store.images.mounts, read_only=True) as place:
            return describe(place)
    finally:
        engine.remove("look")


def allocated(store: Store, name: str, chain_id: str, path: str) -> int:
    engine = store.snapshotter(name)
    mounts = engine.view("look", chain_id)
    try:
        with temp_mount(mounts, dir=store.images.mounts, read_only=True) as place:
            return (place / path).stat().st_blocks * 512
    finally:
        engine.remove("look")


def names(store: Store, name: str) -> set[str]:
    """Return the snapshots, all of which must be whole layers."""
    infos = list(store.snapshotter(name).walk())
    assert {info.kind for info in infos} <= {Kind.COMMITTED}, infos
    assert store.snapshotter(name).fsck() == []
    return {info.name for info in infos}


def copied(migrated: Migrated) -> list[bool]:
    return [layer.copied for copy in migrated.copies for layer in copy.layers]
