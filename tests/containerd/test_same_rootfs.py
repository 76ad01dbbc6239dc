"""Debian's containerd and Lamina make the same root filesystem of the same image."""

from __future__ import annotations

import gzip
import io
import platform
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

import lamina
from lamina.mount import temp_mount
from tests.fixtures_containerd import Containerd
from tests.fixtures_registry import LocalRegistry
from tests.images import Layer, digest, image
from tests.trees import Entry, describe

CAPABILITY = b"\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
"""cap_net_raw, permitted and effective, as VFS_CAP_REVISION_2."""


class LayerWriter:
    """Writes one layer entry by entry."""

    def __init__(self) -> None:
        self._buffer = io.BytesIO()
        self._archive = tarfile.TarFile(fileobj=self._buffer, mode="w", format=tarfile.PAX_FORMAT)

    def add(
        self,
        name: str,
        content: bytes = b"",
        *,
        kind: bytes = tarfile.REGTYPE,
        mode: int = 0o644,
        link: str = "",
        owner: tuple[int, int] = (0, 0),
        mtime: float = 1_500_000_000.25,
        xattrs: dict[str, bytes] | None = None,
        device: tuple[int, int] = (0, 0),
    ) -> None:
        entry = tarfile.TarInfo(name)
        entry.type, entry.mode, entry.linkname, entry.size = kind, mode, link, len(content)
        entry.uid, entry.gid = owner
        entry.mtime = mtime
        entry.devmajor, entry.devminor = device
        entry.pax_headers = {
            f"SCHILY.xattr.{key}": value.decode() for key, value in (xattrs or {}).items()
        }
        self._archive.addfile(entry, io.BytesIO(content))

    def directory(self, name: str, mode: int = 0o755, owner: tuple[int, int] = (0, 0)) -> None:
        self.add(name, kind=tarfile.DIRTYPE, mode=mode, owner=owner)

    def layer(self) -> Layer:
        self._archive.close()
        plain = self._buffer.getvalue()
        return Layer(gzip.compress(plain, 1, mtime=0), digest(plain))


def base() -> Layer:
    writer = LayerWriter()
    for name in ("etc", "usr", "usr/lib", "bin", "gone", "opaque", "becomes-file"):
        writer.directory(name)
    writer.directory("tmp", 0o1777)
    writer.directory("home", 0o750, owner=(1000, 1000))
    writer.add("bin/tool", b"#!/bin/sh\n" * 1000, mode=0o4755)
    writer.add("bin/again", kind=tarfile.LNKTYPE, link="bin/tool", mode=0o4755)
    writer.add("bin/ping", b"ping", mode=0o755, xattrs={"security.capability": CAPABILITY})
    writer.add("etc/noted", b"x", xattrs={"user.note": b"one two"}, mtime=1)
    writer.add("etc/\u5c42-" + "long" * 40, b"a long name", mtime=4_000_000_000)
    writer.add("lib", kind=tarfile.SYMTYPE, link="usr/lib", mode=0o777)
    writer.add("lib/through-a-link", b"lands in usr/lib")
    writer.add("dangling", kind=tarfile.SYMTYPE, link="/no/where", mode=0o777, owner=(5, 6))
    writer.add("home/pipe", kind=tarfile.FIFOTYPE, mode=0o600)
    writer.add("home/null", kind=tarfile.CHRTYPE, mode=0o666, device=(1, 3))
    for name in ("gone/a", "gone/b", "opaque/old", "becomes-file/inside", "becomes-directory"):
        writer.add(name, name.encode())
    return writer.layer()


def changes() -> Layer:
    writer = LayerWriter()
    writer.add(".wh.gone")
    writer.directory("opaque", 0o700)
    writer.add("opaque/.wh..wh..opq")
    writer.add("opaque/new", b"new")
    writer.add("becomes-file", b"a file now")
    writer.directory("becomes-directory")
    writer.add("becomes-directory/inside", b"inside")
    writer.add("etc/.wh.noted")
    return writer.layer()


def last() -> Layer:
    writer = LayerWriter()
    writer.directory("gone", 0o711)
    writer.add("gone/c", b"back again")
    writer.add("implied/parents/file", b"deep")
    writer.directory("home", 0o700, owner=(1001, 1001))
    return writer.layer()


@pytest.fixture
def reference(registry: LocalRegistry) -> str:
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
    files = image(base(), changes(), last(), architecture=architecture)
    registry.push(files.manifest, files.blobs, "compare", "latest")
    return f"{registry.host}/compare:latest"


def containerds(daemon: Containerd, reference: str, target: Path) -> dict[str, Entry]:
    daemon.ctr("images", "pull", "--plain-http", reference)
    target.mkdir()
    daemon.ctr("images", "mount", reference, str(target))
    try:
        return describe(target)
    finally:
        subprocess.run(("umount", target), check=True)


def without_times_since(
    began: int, tree: dict[str, Entry], other: dict[str, Entry]
) -> dict[str, Entry]:
    """Drop the times that unpacking itself set, in one of two trees at least.

    They are those of directories that no entry set last: Lamina leaves what is below where a layer
    does not describe a directory, and containerd the time at which it has changed that.
    """
    ended = time.time_ns()
    own = {
        name
        for name in tree.keys() & other.keys()
        if any(began <= each[name].mtime_ns <= ended for each in (tree, other))
    }
    return {
        name: entry._replace(mtime_ns=0) if name in own else entry for name, entry in tree.items()
    }


@pytest.mark.containerd
@pytest.mark.registry
@pytest.mark.parametrize("snapshotter", ["overlayfs", "native"])
def test_same_tree(
    snapshotter: str, reference: str, containerd: Containerd, tmp_path: Path
) -> None:
    began = time.time_ns()
    expected = containerds(containerd, reference, tmp_path / "theirs")
    with lamina.open(tmp_path / "root") as store:
        store.pull(reference, snapshotter=snapshotter, plain_http=True)
        chain_id = store.unpack(reference, snapshotter)
        assert chain_id is not None
        mounts = store.snapshotter(snapshotter).view("compare", chain_id)
        with temp_mount(mounts, dir=tmp_path) as place:
            found = describe(place)
    assert expected["bin/tool"].mode == "-rwsr-xr-x"
    assert "implied/parents/file" in expected
    assert without_times_since(began, found, expected) == without_times_since(
        began, expected, found
    )
