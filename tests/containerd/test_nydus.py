"""Nydus images under a stock containerd, configured as docs/containerd.md says for lazy images."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lamina.core.labels import REMOTE
from tests.containerd.test_cri import image_filesystem
from tests.containerd.test_proxy import Client
from tests.containerd.test_stargz import GC_SECONDS, HOSTS, NAME
from tests.fixtures_containerd import Containerd, config_version, started
from tests.fixtures_containers import wait_for
from tests.fixtures_peer import ctr_remote
from tests.fixtures_registry import LocalRegistry
from tests.fixtures_serve import CRI_PLUGINS, Serve, documented, localised, serving
from tests.fixtures_stargz import end_lazy
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

CONFIG = """version = 3
[plugins."io.containerd.snapshotter.v1.nydus"]
config_path = "{certs}"
no_background_fetch = true
"""
MAKERS: dict[int, Callable[..., tuple[bytes, bytes]]] = {5: make_v5, 6: make_v6}
BIG = noise(3_000_000)
REFERENCE = f"{NAME}/test:1"


@pytest.fixture(params=[5, 6])
def serve(
    request: pytest.FixtureRequest, tmp_path: Path, registry: LocalRegistry
) -> Iterator[Serve]:
    busybox = Path(shutil.which("busybox") or "").read_bytes()
    root = tree_of({"box/busybox": busybox, "big": BIG}, 0o755)
    for name in (b"proc", b"sys", b"dev", b"run"):
        root.children[name] = tree_of({})
    bootstrap, blob = MAKERS[request.param](root, compressor=ZSTD)
    push(registry, nydus_image(bootstrap, blob, version=str(request.param)))
    certs = tmp_path / "certs.d"
    (certs / NAME).mkdir(parents=True)
    (certs / NAME / "hosts.toml").write_text(HOSTS.format(url=f"http://{registry.host}"))
    running = Serve(tmp_path / "s", CONFIG.format(certs=certs))
    with serving(running):
        yield running
    end_lazy(running.root)


def containerd(serve: Serve, directory: Path, *, cri: bool = False) -> Containerd:
    version = config_version()
    name = "containerd 2.x" if version == 3 else "containerd 1.6 and 1.7"
    document = documented(f"stargz with {name}").replace("stargz", "nydus")
    config = localised(document, serve, directory / "root")
    config = config.replace("/etc/containerd/certs.d", str(certs_of(directory)))
    if not cri:
        top = f"version = {version}\n"
        off = f"{top}disabled_plugins = {json.dumps(CRI_PLUGINS[version])}\n"
        config = config.replace(top, off)
    return Containerd(directory, config=config)


def certs_of(directory: Path) -> Path:
    return directory.parent / "certs.d"


def assert_lazy(serve: Serve, registry: LocalRegistry) -> None:
    """Check that one layer is served, one is unpacked, and only Lamina has asked for the blob."""
    option = ("--snapshotter", "nydus")
    names = [each["Name"] for each in serve.snapshots("nydus")]
    infos = [serve.command.json("snapshots", *option, "info", name, "--json") for name in names]
    committed = [info["Labels"] for info in infos if info["Kind"] == "Committed"]
    assert sorted(REMOTE in labels for labels in committed) == [False, True]
    [layer] = serve.command.json(*serve.options, "lazy", "ls", *option, "--json")
    asked = [line for line in registry.log.read_text().splitlines() if layer["Digest"] in line]
    assert all("lamina/" in line for line in asked if '"GET' in line)
    assert layer["Local"] < len(BIG)


def assert_all_gone(serve: Serve) -> None:
    wait_for(lambda: serve.snapshots("nydus") == [], seconds=GC_SECONDS)
    storage = serve.root / "io.containerd.snapshotter.v1.nydus"
    wait_for(lambda: list((storage / "snapshots").iterdir()) == [], seconds=GC_SECONDS)
    assert list((storage / "blobs").iterdir()) == []
    assert serve.command.out(*serve.options, "fsck") == ""


@pytest.mark.ctr_remote
def test_rpull_run_restart_and_remove(
    serve: Serve, registry: LocalRegistry, tmp_path: Path, container_id: str
) -> None:
    with started(containerd(serve, tmp_path / "c")) as daemon:
        client = Client(daemon, "nydus", container_id)
        hosts = ("--hosts-dir", str(tmp_path / "certs.d"))
        ctr_remote(daemon, "images", "rpull", *hosts, *client.option, REFERENCE)
        assert_lazy(serve, registry)
        busybox = "/box/busybox"
        assert client.run(REFERENCE, busybox, "echo", "hello") == "hello\n"
        serve.kill()
        serve.start()
        client.reconnect()
        script = f"{busybox} wc -c < /big; {busybox} rm /big; echo > /new"
        assert client.run(REFERENCE, busybox, "sh", "-c", script) == f"{len(BIG)}\n"
        client.close()
        daemon.ctr("images", "rm", "--sync", REFERENCE)
        assert_all_gone(serve)


@pytest.mark.go
def test_cri(
    serve: Serve,
    registry: LocalRegistry,
    tmp_path: Path,
    container_id: str,
    imagefs_program: Path,
) -> None:
    with started(containerd(serve, tmp_path / "c", cri=True)) as daemon:
        image_filesystem(imagefs_program, daemon, "-pull", REFERENCE)
        assert_lazy(serve, registry)
        option = ("-n", "k8s.io")
        run = ("run", "--rm", "--snapshotter", "lamina-nydus", REFERENCE, container_id)
        assert daemon.printed(*option, *run, "/box/busybox", "echo", "hello") == "hello\n"
        for name in daemon.ctr(*option, "images", "ls", "-q").split():
            daemon.ctr(*option, "images", "rm", "--sync", name)
        assert_all_gone(serve)
