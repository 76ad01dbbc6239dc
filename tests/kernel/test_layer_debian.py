"""A Debian root file system, extracted by us and by GNU tar, compared entry by entry."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest

from lamina.formats.compression import Compression
from lamina.layer.diff import write_diff
from lamina.layer.limits import LayerLimits
from lamina.layer.process import LayerWorkers
from lamina.layer.target import LayerTarget
from lamina.layer.usage import disk_usage
from tests.archives import apply
from tests.fixtures_debian import debian_rootfs_tar
from tests.trees import Entry, describe

pytestmark = [pytest.mark.root, pytest.mark.debian]

__all__ = ["debian_rootfs_tar"]


def without_root(found: dict[str, Entry]) -> dict[str, Entry]:
    """Leave out the root directory itself: a layer does not change it."""
    return {name: entry for name, entry in found.items() if name != "."}


def test_like_gnu_tar(tmp_path: Path, debian_rootfs_tar: Path) -> None:
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    theirs.mkdir()
    ours.mkdir()
    options = ["--xattrs", "--xattrs-include=*", "--numeric-owner", "--same-owner", "-p"]
    argv = ["tar", *options, "-C", str(theirs), "-xf", str(debian_rootfs_tar)]
    subprocess.run(argv, check=True)
    with LayerWorkers(1) as workers:
        size = debian_rootfs_tar.stat().st_size
        applied = workers.start(
            debian_rootfs_tar,
            "application/vnd.oci.image.layer.v1.tar",
            LayerTarget(ours),
            size=size,
            available=size,
            diff_id=None,
            limits=LayerLimits(),
        ).result()
    with debian_rootfs_tar.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    assert (applied.diff_id, applied.size) == (f"sha256:{digest}", size)
    assert not applied.warnings
    expected = without_root(describe(theirs))
    found = without_root(describe(ours))
    assert len(found) > 5000
    assert found.keys() == expected.keys()
    differing = {name for name in found if found[name] != expected[name]}
    assert not differing
    assert any("security.capability" in entry.xattrs for entry in found.values())
    assert disk_usage(ours).inodes == disk_usage(theirs).inodes


def test_there_and_back(tmp_path: Path, debian_rootfs_tar: Path) -> None:
    """A layer made of the tree, applied again, is the tree."""
    first = tmp_path / "first"
    apply(debian_rootfs_tar.read_bytes(), first, chunk=1 << 18)
    with (tmp_path / "layer").open("wb") as file:
        diff = write_diff(None, first, file.write, compression=Compression.NONE)
    applied = apply((tmp_path / "layer").read_bytes(), tmp_path / "second", chunk=1 << 18)
    assert applied.diff_id == diff.diff_id
    expected, found = (without_root(describe(tmp_path / name)) for name in ("first", "second"))
    assert found.keys() == expected.keys()
    for name, entry in expected.items():
        whole = entry._replace(mtime_ns=entry.mtime_ns // 10**9 * 10**9)
        assert found[name] == whole, name
