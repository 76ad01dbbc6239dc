"""A stock containerd mounts what the fuse-overlayfs snapshotter tells it to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.archives import gnu_tar
from tests.fixtures_containerd import Containerd, at_once, started
from tests.fixtures_containers import make_rootfs, wait_for
from tests.fixtures_registry import LocalRegistry
from tests.fixtures_serve import Serve, proxied_containerd
from tests.images import OCI_LAYER, Layer, digest, image
from tests.isolation import mount_points

pytestmark = [
    pytest.mark.containerd,
    pytest.mark.registry,
    pytest.mark.runtime,
    pytest.mark.fuse,
]

OPTION = ("--snapshotter", "lamina-fuse-overlayfs")
GC_SECONDS = 60.0


@pytest.fixture
def containerd(tmp_path: Path, serve: Serve) -> Iterator[Containerd]:
    made = proxied_containerd(tmp_path / "c", serve, sections=("fuse-overlayfs",))
    with started(made) as daemon:
        yield daemon


@pytest.fixture
def reference(tmp_path: Path, registry: LocalRegistry) -> str:
    rootfs = tmp_path / "busybox"
    rootfs.mkdir()
    make_rootfs(rootfs)
    (rootfs / "etc/deleted").touch()
    (rootfs / "etc/hidden").mkdir()
    (rootfs / "etc/hidden/x").touch()
    base = gnu_tar(rootfs)
    above = Layer.of({"etc/.wh.deleted": b"", "etc/hidden/.wh..wh..opq": b"", "etc/hidden/y": b"y"})
    top = Layer.of({"etc/top": b"top"})
    files = image(Layer(base, digest(base), OCI_LAYER), above, top, config={"Env": ["PATH=/bin"]})
    registry.push(files.manifest, files.blobs, "test", "1")
    return f"{registry.host}/test:1"


def test_pull_run_and_remove(
    containerd: Containerd, serve: Serve, reference: str, container_id: str
) -> None:
    before = mount_points()
    containerd.ctr("images", "pull", "--plain-http", *OPTION, reference)
    listed = serve.snapshots("fuse-overlayfs")
    assert [each["Kind"] for each in listed] == ["Committed"] * 3
    script = "mount | grep ' / '; ls /etc /etc/hidden; echo new > /etc/passwd; rm /etc/top"
    argv = ("sh", "-c", at_once(script))
    said = containerd.printed("run", "--rm", *OPTION, reference, container_id, *argv)
    assert said.startswith("fuse-overlayfs on / type fuse.fuse-overlayfs (rw,")
    words = said.split()
    assert {"hidden", "y", "top"} <= set(words)
    assert not {"deleted", "x"} & set(words)
    run = ("run", "--rm", *OPTION, reference, container_id)
    assert containerd.printed(*run, "cat", "/etc/top") == "top", "the layers are as they were"
    containerd.ctr("images", "rm", "--sync", reference)
    wait_for(lambda: serve.snapshots("fuse-overlayfs") == [], seconds=GC_SECONDS)
    storage = serve.root / "io.containerd.snapshotter.v1.fuse-overlayfs/snapshots"
    wait_for(lambda: list(storage.iterdir()) == [], seconds=GC_SECONDS)
    assert mount_points() == before
    assert serve.command.out("fsck") == ""
