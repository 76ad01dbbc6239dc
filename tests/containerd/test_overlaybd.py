"""overlaybd images under a stock containerd, configured as docs/containerd.md says of lazy ones."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.core.labels import REMOTE
from lamina.formats.overlaybd.annotations import BLOB_DIGEST
from tests.containerd.test_cri import image_filesystem
from tests.containerd.test_proxy import Client
from tests.fixtures_containerd import started
from tests.fixtures_peer import ctr_remote
from tests.fixtures_registry import LocalRegistry
from tests.lazy_serve import NAME, LazyServe, lazily_serving
from tests.nydus import push
from tests.overlaybd_images import device_layers, overlaybd_image, writing
from tests.rafs import noise

pytest_plugins = ["tests.fixtures_registry"]
pytestmark = [
    pytest.mark.containerd,
    pytest.mark.registry,
    pytest.mark.runtime,
    pytest.mark.loop,
    pytest.mark.fuse,
]

BIG = noise(15_000_000)
REFERENCE = f"{NAME}/test:1"


def install(root: Path) -> None:
    writing({"box/busybox": Path(shutil.which("busybox") or "").read_bytes()})(root)
    (root / "box/busybox").chmod(0o755)
    for name in ("proc", "sys", "dev", "run"):
        (root / name).mkdir()


@pytest.fixture
def node(tmp_path: Path, registry: LocalRegistry) -> Iterator[LazyServe]:
    layers = device_layers(tmp_path, [install, writing({"big": BIG})])
    push(registry, overlaybd_image(*layers))
    with lazily_serving(tmp_path, "overlaybd", registry) as serving:
        yield serving


def assert_lazy(node: LazyServe) -> None:
    """Check that all layers are served, and only Lamina has asked for blobs."""
    committed = node.committed_labels()
    assert [REMOTE in labels for labels in committed] == [True, True]
    asked = [line for labels in committed for line in node.asked(labels[BLOB_DIGEST])]
    assert asked
    assert all("lamina/" in line for line in asked)


@pytest.mark.ctr_remote
def test_rpull_run_restart_and_remove(node: LazyServe, tmp_path: Path, container_id: str) -> None:
    with started(node.containerd(tmp_path / "c")) as daemon:
        client = Client(daemon, "overlaybd", container_id)
        hosts = ("--hosts-dir", str(node.certs))
        ctr_remote(daemon, "images", "rpull", *hosts, *client.option, REFERENCE)
        assert_lazy(node)
        busybox = "/box/busybox"
        assert client.run(REFERENCE, busybox, "echo", "hello") == "hello\n"
        lazy = ("lazy", "ls", "--snapshotter", "overlaybd", "--json")
        [shown] = node.serve.command.json(*node.serve.options, *lazy)
        assert shown["Local"] < len(BIG)
        node.serve.kill()
        node.serve.start()
        client.reconnect()
        script = f"{busybox} wc -c < /big; {busybox} rm /big; echo > /new"
        assert client.run(REFERENCE, busybox, "sh", "-c", script) == f"{len(BIG)}\n"
        client.close()
        daemon.ctr("images", "rm", "--sync", REFERENCE)
        node.assert_all_gone()


@pytest.mark.go
def test_cri(node: LazyServe, tmp_path: Path, container_id: str, imagefs_program: Path) -> None:
    with started(node.containerd(tmp_path / "c", cri=True)) as daemon:
        image_filesystem(imagefs_program, daemon, "-pull", REFERENCE)
        assert_lazy(node)
        option = ("-n", "k8s.io")
        run = ("run", "--rm", "--snapshotter", "lamina-overlaybd", REFERENCE, container_id)
        assert daemon.printed(*option, *run, "/box/busybox", "echo", "hello") == "hello\n"
        for name in daemon.ctr(*option, "images", "ls", "-q").split():
            daemon.ctr(*option, "images", "rm", "--sync", name)
        node.assert_all_gone()
