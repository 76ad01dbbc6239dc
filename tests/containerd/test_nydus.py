"""Nydus images under a stock containerd, configured as docs/containerd.md says for lazy images."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lamina.core.labels import REMOTE
from tests.containerd.test_cri import image_filesystem
from tests.containerd.test_proxy import Client
from tests.fixtures_containerd import started
from tests.fixtures_peer import ctr_remote
from tests.fixtures_registry import LocalRegistry
from tests.lazy_serve import NAME, LazyServe, lazily_serving
from tests.nydus import nydus_image, push, tree_of
from tests.rafs import noise
from tests.rafs_blobs import ZSTD
from tests.rafs_v5 import make_v5
from tests.rafs_v6 import make_v6

pytest_plugins = ["tests.fixtures_registry"]
pytestmark = [
    pytest.mark.containerd,
    pytest.mark.registry,
    pytest.mark.runtime,
    pytest.mark.erofs,
    pytest.mark.fuse,
]

MAKERS: dict[int, Callable[..., tuple[bytes, bytes]]] = {5: make_v5, 6: make_v6}
BIG = noise(3_000_000)
REFERENCE = f"{NAME}/test:1"


@pytest.fixture(params=[5, 6])
def node(
    request: pytest.FixtureRequest, tmp_path: Path, registry: LocalRegistry
) -> Iterator[LazyServe]:
    busybox = Path(shutil.which("busybox") or "").read_bytes()
    root = tree_of({"box/busybox": busybox, "big": BIG}, 0o755)
    for name in (b"proc", b"sys", b"dev", b"run"):
        root.children[name] = tree_of({})
    bootstrap, blob = MAKERS[request.param](root, compressor=ZSTD)
    push(registry, nydus_image(bootstrap, blob, version=str(request.param)))
    with lazily_serving(tmp_path, "nydus", registry) as serving:
        yield serving


def assert_lazy(node: LazyServe) -> None:
    """Check that one layer is served, one is unpacked, and only Lamina has asked for the blob."""
    labels = node.committed_labels()
    assert sorted(REMOTE in each for each in labels) == [False, True]
    lazy = ("lazy", "ls", "--snapshotter", "nydus", "--json")
    [layer] = node.serve.command.json(*node.serve.options, *lazy)
    assert all("lamina/" in line for line in node.asked(layer["Digest"]))
    assert layer["Local"] < len(BIG)


def assert_all_gone(node: LazyServe) -> None:
    node.assert_all_gone()
    assert list((node.storage / "blobs").iterdir()) == []


@pytest.mark.ctr_remote
def test_rpull_run_restart_and_remove(node: LazyServe, tmp_path: Path, container_id: str) -> None:
    with started(node.containerd(tmp_path / "c")) as daemon:
        client = Client(daemon, "nydus", container_id)
        hosts = ("--hosts-dir", str(node.certs))
        ctr_remote(daemon, "images", "rpull", *hosts, *client.option, REFERENCE)
        assert_lazy(node)
        busybox = "/box/busybox"
        assert client.run(REFERENCE, busybox, "echo", "hello") == "hello\n"
        node.serve.kill()
        node.serve.start()
        client.reconnect()
        script = f"{busybox} wc -c < /big; {busybox} rm /big; echo > /new"
        assert client.run(REFERENCE, busybox, "sh", "-c", script) == f"{len(BIG)}\n"
        client.close()
        daemon.ctr("images", "rm", "--sync", REFERENCE)
        assert_all_gone(node)


@pytest.mark.go
def test_cri(node: LazyServe, tmp_path: Path, container_id: str, imagefs_program: Path) -> None:
    with started(node.containerd(tmp_path / "c", cri=True)) as daemon:
        image_filesystem(imagefs_program, daemon, "-pull", REFERENCE)
        assert_lazy(node)
        option = ("-n", "k8s.io")
        run = ("run", "--rm", "--snapshotter", "lamina-nydus", REFERENCE, container_id)
        assert daemon.printed(*option, *run, "/box/busybox", "echo", "hello") == "hello\n"
        for name in daemon.ctr(*option, "images", "ls", "-q").split():
            daemon.ctr(*option, "images", "rm", "--sync", name)
        assert_all_gone(node)
