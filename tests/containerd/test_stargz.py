"""Lazy images under a stock containerd, configured as docs/containerd.md says."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from lamina.core.labels import REMOTE
from lamina.lazy.launch import LazyWorker
from lamina.snapshotters.lazy_overlay import REASON_LABEL
from tests.containerd.test_cri import image_filesystem
from tests.containerd.test_proxy import COUNT, Client
from tests.fixtures_containerd import Containerd, at_once, config_version, started
from tests.fixtures_peer import (
    BIG,
    FORMATS,
    NAMES_BELOW_MANY,
    PEER_NAME,
    Peer,
    PeerImage,
    ctr_remote,
)
from tests.fixtures_registry import LocalRegistry, running_registry
from tests.fixtures_serve import (
    serving,
)
from tests.fixtures_stargz import annotated, end_worker, stargz_layer
from tests.images import Layer, image
from tests.lazy_serve import NAME, LazyServe
from tests.unit.test_registry_real import HTPASSWD

pytestmark = [
    pytest.mark.containerd,
    pytest.mark.ctr_remote,
    pytest.mark.registry,
    pytest.mark.runtime,
    pytest.mark.erofs,
    pytest.mark.fuse,
]

LOGIN = "user:pass:word"
"""Whom HTPASSWD lets in."""


class Request(NamedTuple):
    """A blob that the registry was asked for."""

    digest: str
    agent: str
    sent: int


class Node(LazyServe):
    """One with an image that stargz-snapshotter's own tools have made."""

    def __init__(self, directory: Path, registry: LocalRegistry, image: PeerImage) -> None:
        super().__init__(directory, "stargz", registry)
        self.reference = f"{NAME}/{PEER_NAME}"
        self.layers = {str(layer["digest"]): int(str(layer["size"])) for layer in image.layers}

    def requests(self) -> list[Request]:
        """Return what the registry has logged of requests for layers."""
        line = re.compile(r'"GET \S+/blobs/([^ ?]+)\S* HTTP/1.1" 20[06] (\d+) "[^"]*" "([^"]*)"')
        found = line.findall(self.registry.log.read_text())
        requests = [Request(digest, agent, int(sent)) for digest, sent, agent in found]
        return [request for request in requests if request.digest in self.layers]

    def assert_lazy(self) -> None:
        """Check that nobody has fetched a layer, and that Lamina serves them all."""
        infos = self.infos()
        said = f"{infos}\n{self.serve.log.read_text()[-3000:]}"
        assert [REMOTE in info["Labels"] for info in infos] == [True] * len(self.layers), said
        requests = self.requests()
        assert {request.digest for request in requests} == self.layers.keys()
        assert all(request.agent.startswith("lamina/") for request in requests), requests
        assert sum(request.sent for request in requests) < sum(self.layers.values()) / 4

    def assert_all_removed(self, containerd: Containerd) -> None:
        containerd.ctr("images", "rm", "--sync", self.reference)
        self.assert_all_gone()


@pytest.fixture(params=["estargz"])
def node(
    request: pytest.FixtureRequest, tmp_path: Path, registry: LocalRegistry, peer: Peer
) -> Iterator[Node]:
    image = peer.image(request.param)
    image.push(registry)
    made = Node(tmp_path, registry, image)
    with serving(made.serve):
        yield made
    end_worker(made.serve.root)


@pytest.fixture
def client(node: Node, tmp_path: Path, container_id: str) -> Iterator[Client]:
    with started(node.containerd(tmp_path / "c")) as daemon:
        running = Client(daemon, "stargz", container_id)
        yield running
        running.close()


def rpull(client: Client, node: Node, *options: str) -> None:
    hosts = ("--hosts-dir", str(node.certs))
    ctr_remote(client.daemon, "images", "rpull", *hosts, *options, *client.option, node.reference)


@pytest.mark.parametrize("node", FORMATS, indirect=True)
def test_rpull_run_and_remove(client: Client, node: Node) -> None:
    """Its labels tell neither manifest nor size; 1.6 tells them no other way without CRI."""
    rpull(client, node)
    node.assert_lazy()
    script = "cat n*; busybox find many | wc -l; wc -c < many/big; rm many/big; echo > etc/new"
    argv = ("/box/busybox", "sh", "-c", f"PATH=/box; {at_once(script)}")
    said = client.run(node.reference, *argv)
    assert said == f"a name of 255 bytes{NAMES_BELOW_MANY}\n{BIG}\n"
    assert all(request.agent.startswith("lamina/") for request in node.requests())
    node.assert_all_removed(client.daemon)
    assert LazyWorker(node.storage).status().layers == []


def test_restarts_of_both(client: Client, node: Node) -> None:
    rpull(client, node)
    busybox = "/box/busybox"
    id = client.start(node.reference, busybox, "sh", "-c", f"PATH=/box; {COUNT}")

    def read(path: str) -> str:
        """Have the container that runs all the time read what nobody has read before."""
        number = time.monotonic_ns()
        argv = ("tasks", "exec", "--exec-id", f"r{number}", id, busybox, "wc", "-c", path)
        return client.daemon.printed(*argv).split()[0]

    node.serve.kill()
    assert read("/many/exactly") == str(4 << 20)
    node.serve.start()
    client.reconnect()
    assert client.run(node.reference, busybox, "wc", "-c", "/many/big").split()[0] == str(BIG)
    client.daemon.kill()
    client.daemon.start()
    assert read("/many/zeros") == str(5 << 20)
    assert client.run(node.reference, busybox, "cat", "/links/c") == "LINKED"
    client.remove(id)
    node.assert_all_removed(client.daemon)


def test_pull_by_ctr(client: Client, node: Node) -> None:
    """`ctr images pull` of 1.6 does not even offer layers to the snapshotter; that of 2.x does."""
    client.daemon.ctr(
        "images", "pull", "--hosts-dir", str(node.certs), *client.option, node.reference
    )
    if config_version() == 3:
        node.assert_lazy()
    else:
        assert [REMOTE in info.get("Labels", {}) for info in node.infos()] == [False] * 7
    assert client.run(node.reference, "/box/busybox", "cat", "/links/c") == "LINKED"
    node.assert_all_removed(client.daemon)


@pytest.mark.go
def test_cri(node: Node, tmp_path: Path, container_id: str, imagefs_program: Path) -> None:
    with started(node.containerd(tmp_path / "c", cri=True)) as daemon:
        image_filesystem(imagefs_program, daemon, "-pull", node.reference)
        node.assert_lazy()
        option = ("-n", "k8s.io")
        run = ("run", "--rm", "--snapshotter", "lamina-stargz", node.reference, container_id)
        said = daemon.printed(*option, *run, "/box/busybox", "cat", "/links/c")
        assert said == "LINKED"
        for name in daemon.ctr(*option, "images", "ls", "-q").split():
            daemon.ctr(*option, "images", "rm", "--sync", name)
        node.assert_all_gone()


def test_registry_that_wants_a_login(tmp_path: Path, peer: Peer, container_id: str) -> None:
    """What containerd logs in with does not reach Lamina, which has a file of its own for that."""
    image = peer.image("estargz")
    htpasswd = tmp_path / "htpasswd"
    htpasswd.write_text(HTPASSWD)
    with running_registry(tmp_path / "r") as open_to_all:
        image.push(open_to_all)
    with ExitStack() as stack:
        registry = stack.enter_context(running_registry(tmp_path / "r", htpasswd=htpasswd))
        node = Node(tmp_path, registry, image)
        stack.callback(end_worker, node.serve.root)
        stack.enter_context(serving(node.serve))
        daemon = stack.enter_context(started(node.containerd(tmp_path / "c")))
        client = Client(daemon, "stargz", container_id)
        rpull(client, node, "--user", LOGIN)
        infos = node.infos()
        assert [REMOTE in info["Labels"] for info in infos] == [False] * len(node.layers)
        said = f"{registry.host} asks for a user and a password"
        assert all(said in info["Labels"][REASON_LABEL] for info in infos)
        node.assert_all_removed(daemon)
        registry.log.write_text("")
        login = {"auth": base64.b64encode(LOGIN.encode()).decode()}
        node.docker_config.write_text(json.dumps({"auths": {registry.host: login}}))
        rpull(client, node, "--user", LOGIN)
        node.assert_lazy()
        node.assert_all_removed(daemon)
        node.docker_config.unlink()
        hosts = node.certs / NAME / "hosts.toml"
        table = f'[host."http://{registry.host}".header]\nauthorization = "Basic {login["auth"]}"\n'
        hosts.write_text(hosts.read_text() + table)
        rpull(client, node)
        node.assert_lazy()
        assert client.run(node.reference, "/box/busybox", "cat", "/links/c") == "LINKED"
        node.assert_all_removed(daemon)


def test_two_namespaces_on_a_layer_that_is_not_lazy(
    tmp_path: Path, registry: LocalRegistry
) -> None:
    """What stands on it is lazy where it comes first; the other namespace has a base of its own."""
    files = image(Layer.of({"base": b"base"}), stargz_layer({"above": b"above"}))
    made = PeerImage(annotated(files), files.blobs)
    made.push(registry)
    node = Node(tmp_path, registry, made)
    with serving(node.serve), started(node.containerd(tmp_path / "c")) as daemon:
        lazy = []
        for namespace in ("one", "two"):
            option = ("--hosts-dir", str(node.certs), "--snapshotter", "lamina-stargz")
            ctr_remote(daemon, "-n", namespace, "images", "rpull", *option, node.reference)
            lazy.append(sorted(REMOTE in info["Labels"] for info in node.infos()))
        assert lazy == [[False, True], [False, False, False, True]]
        for namespace in ("one", "two"):
            daemon.ctr("-n", namespace, "images", "rm", "--sync", node.reference)
        node.assert_all_gone()
    end_worker(node.serve.root)
