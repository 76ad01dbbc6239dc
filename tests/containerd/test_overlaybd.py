"""overlaybd images under a stock containerd, configured as docs/containerd.md says of lazy ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
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

CONFIG = """version = 3
[plugins."io.containerd.snapshotter.v1.overlaybd"]
config_path = "{certs}"
no_background_fetch = true
"""
BIG = noise(15_000_000)
REFERENCE = f"{NAME}/test:1"


def install(root: Path) -> None:
    writing({"box/busybox": Path(shutil.which("busybox") or "").read_bytes()})(root)
    (root / "box/busybox").chmod(0o755)
    for name in ("proc", "sys", "dev", "run"):
        (root / name).mkdir()


@pytest.fixture
def serve(tmp_path: Path, registry: LocalRegistry) -> Iterator[Serve]:
    layers = device_layers(tmp_path, [install, writing({"big": BIG})])
    push(registry, overlaybd_image(*layers))
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
    document = documented(f"stargz with {name}").replace("stargz", "overlaybd")
    config = localised(document, serve, directory / "root")
    config = config.replace("/etc/containerd/certs.d", str(directory.parent / "certs.d"))
    if not cri:
        top = f"version = {version}\n"
        off = f"{top}disabled_plugins = {json.dumps(CRI_PLUGINS[version])}\n"
        config = config.replace(top, off)
    return Containerd(directory, config=config)


def assert_lazy(serve: Serve, registry: LocalRegistry) -> None:
    """Check that all layers are served, and only Lamina has asked for blobs."""
    option = ("--snapshotter", "overlaybd")
    names = [each["Name"] for each in serve.snapshots("overlaybd")]
    infos = [serve.command.json("snapshots", *option, "info", name, "--json") for name in names]
    committed = [info["Labels"] for info in infos if info["Kind"] == "Committed"]
    assert [REMOTE in labels for labels in committed] == [True, True]
    digests = [labels["containerd.io/snapshot/overlaybd/blob-digest"] for labels in committed]
    log = registry.log.read_text().splitlines()
    asked = [line for line in log if '"GET' in line and any(each in line for each in digests)]
    assert asked
    assert all("lamina/" in line for line in asked)


def assert_all_gone(serve: Serve) -> None:
    wait_for(lambda: serve.snapshots("overlaybd") == [], seconds=GC_SECONDS)
    storage = serve.root / "io.containerd.snapshotter.v1.overlaybd"
    wait_for(lambda: list((storage / "snapshots").iterdir()) == [], seconds=GC_SECONDS)
    assert serve.command.out(*serve.options, "fsck") == ""


@pytest.mark.ctr_remote
def test_rpull_run_restart_and_remove(
    serve: Serve, registry: LocalRegistry, tmp_path: Path, container_id: str
) -> None:
    with started(containerd(serve, tmp_path / "c")) as daemon:
        client = Client(daemon, "overlaybd", container_id)
        hosts = ("--hosts-dir", str(tmp_path / "certs.d"))
        ctr_remote(daemon, "images", "rpull", *hosts, *client.option, REFERENCE)
        assert_lazy(serve, registry)
        busybox = "/box/busybox"
        assert client.run(REFERENCE, busybox, "echo", "hello") == "hello\n"
        [shown] = serve.command.json(
            *serve.options, "lazy", "ls", "--snapshotter", "overlaybd", "--json"
        )
        assert shown["Local"] < len(BIG)
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
        run = ("run", "--rm", "--snapshotter", "lamina-overlaybd", REFERENCE, container_id)
        assert daemon.printed(*option, *run, "/box/busybox", "echo", "hello") == "hello\n"
        for name in daemon.ctr(*option, "images", "ls", "-q").split():
            daemon.ctr(*option, "images", "rm", "--sync", name)
        assert_all_gone(serve)
