"""A stock containerd on `lamina serve`, configured as docs/containerd.md says.

Another containerd than the one on PATH: `PATH=/opt/containerd/bin:$PATH script/test containerd`.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

import lamina
from lamina.api.channel import Channel
from lamina.api.client import RemoteSnapshotter
from lamina.core.labels import FORK_OF, GC_ROOT
from lamina.core.snapshot import Kind
from lamina.errors import FailedPrecondition, InvalidArgument
from lamina.mount import temp_mount
from tests.archives import gnu_tar
from tests.fixtures_containerd import COMMAND_SECONDS, Containerd, at_once
from tests.fixtures_containers import make_rootfs, wait_for
from tests.fixtures_registry import LocalRegistry
from tests.fixtures_serve import Serve
from tests.images import OCI_LAYER, Layer, digest, image

pytestmark = [
    pytest.mark.containerd,
    pytest.mark.registry,
    pytest.mark.runtime,
    pytest.mark.parametrize("snapshotter", ["overlayfs", "native"]),
]

GC_SECONDS = 60.0
COUNT = "i=0; while :; do i=$((i+1)); echo $i > /count; sleep 0.02; done"
"""What a container does that writes to its snapshot all the time."""
READ_COUNT = "if test -e /count; then cat /count; fi"
"""Reads it; what was just started has not counted yet."""


@pytest.fixture(scope="module")
def busybox(tmp_path_factory: pytest.TempPathFactory) -> Layer:
    directory = tmp_path_factory.mktemp("busybox")
    make_rootfs(directory)
    (directory / "etc/deleted").write_text("by the layer above")
    (directory / "etc/changed").write_text("below")
    plain = gnu_tar(directory)
    return Layer(plain, digest(plain), OCI_LAYER)


@pytest.fixture
def reference(registry: LocalRegistry, busybox: Layer) -> str:
    """An image of which the upper layer deletes and replaces files of the lower one."""
    above = Layer.of({"etc/.wh.deleted": b"", "etc/changed": b"above\n"})
    return push(registry, busybox, above)


@pytest.fixture
def many_layers(registry: LocalRegistry, busybox: Layer) -> str:
    """An image that takes a second or so to unpack."""
    filler = [
        Layer.of({f"fill/{number}": os.urandom(4 << 20)}, compress=False) for number in range(24)
    ]
    return push(registry, busybox, *filler)


def push(registry: LocalRegistry, *layers: Layer) -> str:
    files = image(*layers, config={"Env": ["PATH=/bin"]})
    registry.push(files.manifest, files.blobs, "test/busybox", "latest")
    return f"{registry.host}/test/busybox:latest"


HANDSHAKE_SECONDS = 1.0
"""How long containerd waits for a connection that is accepted to be answered on."""


class Client:
    """`ctr` with one of Lamina's snapshotters; removes the containers that it has started."""

    def __init__(self, daemon: Containerd, snapshotter: str, container_id: str) -> None:
        self.daemon = daemon
        self.option = ("--snapshotter", f"lamina-{snapshotter}")
        self._id = container_id
        self._started: list[str] = []

    def pull(self, reference: str) -> None:
        self.daemon.ctr("images", "pull", "--plain-http", *self.option, reference)

    def reconnect(self) -> None:
        """Wait until containerd has a connection to Lamina again.

        It gives an attempt HANDSHAKE_SECONDS, and then waits for up to three: a restart that takes
        longer, as on a busy machine, may cost it an attempt.
        """
        argv = ("snapshots", *self.option, "ls")
        wait_for(lambda: self.daemon.try_ctr(*argv).returncode == 0)

    def start_pull(self, reference: str) -> subprocess.Popen[bytes]:
        argv = self.daemon.argv("images", "pull", "--plain-http", *self.option, reference)
        null = subprocess.DEVNULL
        return subprocess.Popen(argv, stdin=null, stdout=null, stderr=null)

    def run(self, reference: str, *command: str) -> str:
        """Run a command in a throw-away container; return what it prints."""
        arguments = ("run", "--rm", *self.option, reference, f"{self._id}-run", *command)
        return self.daemon.printed(*arguments)

    def start(self, reference: str, *command: str) -> str:
        """Start a container that goes on; return its id."""
        id = f"{self._id}-{len(self._started)}"
        self._started.append(id)
        self.daemon.ctr("run", "-d", *self.option, reference, id, *command)
        return id

    def count(self, id: str) -> int:
        """Return how far a container has counted."""
        number = time.monotonic_ns()
        argv = ("tasks", "exec", "--exec-id", f"e{number}", id, "sh", "-c", READ_COUNT)
        return int(self.daemon.ctr(*argv) or 0)

    def assert_counts(self, id: str, by: int = 1) -> None:
        """Wait until a container has counted on."""
        before = self.count(id)
        wait_for(lambda: self.count(id) >= before + by)

    def remove(self, id: str) -> None:
        self._started.remove(id)
        self.daemon.ctr("tasks", "rm", "-f", id)
        self.daemon.ctr("containers", "rm", id)

    def snapshots(self, *arguments: str) -> str:
        return self.daemon.ctr("snapshots", *self.option, *arguments)

    def close(self) -> None:
        for id in list(self._started):
            self.daemon.try_ctr("tasks", "rm", "-f", id)


@pytest.fixture
def client(proxied: Containerd, snapshotter: str, container_id: str) -> Iterator[Client]:
    running = Client(proxied, snapshotter, container_id)
    yield running
    running.close()


def assert_all_removed(client: Client, serve: Serve, snapshotter: str, reference: str) -> None:
    """Remove the image: containerd's garbage collection lets Lamina remove the snapshots."""
    client.daemon.ctr("images", "rm", "--sync", reference)
    wait_for(lambda: serve.snapshots(snapshotter) == [], seconds=GC_SECONDS)
    storage = serve.root / f"io.containerd.snapshotter.v1.{snapshotter}/snapshots"
    wait_for(lambda: list(storage.iterdir()) == [], seconds=GC_SECONDS)
    assert client.snapshots("ls").splitlines()[1:] == []
    assert serve.command.out("fsck") == ""


def test_pull_run_and_remove(
    client: Client, serve: Serve, snapshotter: str, reference: str
) -> None:
    client.pull(reference)
    listed = serve.snapshots(snapshotter)
    assert [each["Kind"] for each in listed] == ["Committed", "Committed"]
    script = at_once("cat /etc/changed; ls /etc; echo new > /etc/passwd")
    said = client.run(reference, "sh", "-c", script)
    assert said.splitlines()[0] == "above"
    assert "deleted" not in said
    assert client.run(reference, "cat", "/etc/passwd").startswith("root:x:0:0")
    assert_all_removed(client, serve, snapshotter, reference)


def test_ctr_snapshots(client: Client, serve: Serve, snapshotter: str, reference: str) -> None:
    client.pull(reference)
    lines = [line.split() for line in client.snapshots("ls").splitlines()[1:]]
    (base,) = [line[0] for line in lines if len(line) == 2]
    (top,) = [line[0] for line in lines if len(line) == 3]
    assert [line[-1] for line in lines] == ["Committed", "Committed"]
    assert json.loads(client.snapshots("info", top))["Parent"] == base
    tree = client.snapshots("tree").splitlines()
    assert [line.rpartition(" ")[2] for line in tree] == [base, top]

    client.snapshots("prepare", "work", top)
    assert client.snapshots("mounts", "/mnt", "work").startswith("mount -t ")
    assert "colour=blue" in client.snapshots("label", "work", "colour=blue").strip().split(",")
    size, inodes = client.snapshots("usage", "-b", "work").splitlines()[1].split()[1:]
    assert int(size) > 0
    assert int(inodes) > 0
    client.snapshots("commit", "kept", "work")
    client.snapshots("prepare", "child", "kept")
    assert ["child", "kept", "Active"] in [
        line.split() for line in client.snapshots("ls").splitlines()
    ]
    refused = client.daemon.try_ctr("snapshots", *client.option, "rm", "kept")
    assert refused.returncode != 0
    assert "cannot remove snapshot with child" in refused.stderr
    for key in ("child", "kept"):
        client.snapshots("rm", key)
    # Nothing holds a view that ctr makes: garbage collection may take it at any time.
    assert json.loads(client.snapshots("view", "--mounts", "look", top))[0]["Type"]
    assert_all_removed(client, serve, snapshotter, reference)


def test_fork_through_containerd(client: Client, serve: Serve, snapshotter: str) -> None:
    """A client of containerd forks with the label, which containerd passes on."""
    with Channel(client.daemon.address) as channel:
        remote = RemoteSnapshotter(channel, f"lamina-{snapshotter}", namespace="default")
        # Without it, the collection of garbage that a containerd begins with may take the snapshot.
        kept = {GC_ROOT: "2026-01-01T00:00:00Z"}
        remote.prepare("old", labels=kept)
        with temp_mount(remote.mounts("old"), dir=serve.root) as root:
            (root / "below").write_text("b")
        remote.commit("base", "old", labels=kept)
        with temp_mount(remote.prepare("source", "base", labels=kept), dir=serve.root) as root:
            (root / "file").write_text("one")
            mounts = remote.fork("source", "fork", labels=kept)
            (root / "file").write_text("two")
        with temp_mount(mounts, dir=serve.root) as root:
            assert (root / "file").read_text() == "one"
            assert (root / "below").read_text() == "b"
        assert remote.stat("fork").parent == "base"
        with pytest.raises(InvalidArgument, match="parent"):
            remote.prepare("other", labels={FORK_OF: "source"})
        with pytest.raises(FailedPrecondition):
            remote.fork("base", "other")
        client.daemon.ctr("content", "prune", "references")  # collects garbage
        assert [info.name for info in remote.walk()] == ["base", "fork", "source"]
        for key in ("source", "fork", "base"):
            remote.remove(key)
        client.daemon.ctr("content", "prune", "references")
    wait_for(lambda: serve.snapshots(snapshotter) == [], seconds=GC_SECONDS)
    assert serve.command.out("fsck") == ""


def interrupted_pull(
    client: Client, serve: Serve, snapshotter: str, reference: str, interrupt: Callable[[], None]
) -> None:
    """Interrupt a pull in which some layers are unpacked already and others are not."""
    pull = client.start_pull(reference)

    # Not by the command line, which on a busy machine starts as slowly as the pull goes.
    with lamina.open(serve.root) as store:
        engine = store.snapshotter(snapshotter)

        def unpacking() -> bool:
            done = [info for info in engine.walk() if info.kind is Kind.COMMITTED]
            return len(done) > 1 or pull.poll() is not None

        wait_for(unpacking)
    assert pull.poll() is None, "the pull was over before it could be interrupted"
    interrupt()
    pull.wait(COMMAND_SECONDS)


@pytest.mark.socket_unit
def test_lamina_restarts_in_a_pull(
    client: Client, serve: Serve, snapshotter: str, many_layers: str
) -> None:
    def restart() -> None:
        serve.kill()
        serve.start()

    interrupted_pull(client, serve, snapshotter, many_layers, restart)
    client.reconnect()
    client.pull(many_layers)
    assert client.run(many_layers, "ls", "/fill").split() == sorted(map(str, range(24)))
    assert_all_removed(client, serve, snapshotter, many_layers)


def test_containerd_restarts_in_a_pull(
    client: Client, serve: Serve, snapshotter: str, many_layers: str
) -> None:
    def restart() -> None:
        client.daemon.kill()
        client.daemon.start()

    interrupted_pull(client, serve, snapshotter, many_layers, restart)
    client.pull(many_layers)
    assert client.run(many_layers, "ls", "/fill").split() == sorted(map(str, range(24)))
    # The lease of the pull that was cut off keeps its snapshots for a day.
    for lease in client.daemon.ctr("leases", "ls", "-q").split():
        client.daemon.ctr("leases", "rm", lease)
    assert_all_removed(client, serve, snapshotter, many_layers)


@pytest.mark.socket_unit
def test_containers_do_not_notice_a_killed_lamina(
    client: Client, serve: Serve, snapshotter: str, reference: str
) -> None:
    client.pull(reference)
    containers = [client.start(reference, "sh", "-c", COUNT) for _ in range(2)]
    began = time.monotonic()
    serve.kill()
    serve.start()
    if time.monotonic() - began > HANDSHAKE_SECONDS:
        client.reconnect()
    assert client.run(reference, "cat", "/etc/changed") == "above\n"  # the very next request
    for id in containers:
        client.assert_counts(id)
    assert serve.command.out("fsck") == ""
    for id in containers:
        client.remove(id)
    assert_all_removed(client, serve, snapshotter, reference)


def test_containers_go_on_without_lamina(
    client: Client, serve: Serve, snapshotter: str, reference: str
) -> None:
    client.pull(reference)
    id = client.start(reference, "sh", "-c", COUNT)
    serve.kill()
    client.assert_counts(id, by=10)
    assert client.daemon.try_ctr("snapshots", *client.option, "ls").returncode != 0
    client.assert_counts(id, by=10)
    serve.start()
    client.reconnect()
    assert client.run(reference, "cat", "/etc/changed") == "above\n"
    client.assert_counts(id)
    assert serve.command.out("fsck") == ""
    client.remove(id)
    assert_all_removed(client, serve, snapshotter, reference)


def test_containers_keep_their_snapshots_over_a_restart_of_both(
    client: Client, serve: Serve, snapshotter: str, reference: str
) -> None:
    client.pull(reference)
    id = client.start(reference, "sh", "-c", COUNT)
    client.daemon.stop()
    serve.stop()
    serve.start()
    client.daemon.start()
    client.assert_counts(id)
    # The container's own snapshot and the image's: garbage collection leaves them alone.
    client.daemon.ctr("content", "prune", "references")
    kinds = sorted(each["Kind"] for each in serve.snapshots(snapshotter))
    assert kinds == ["Active", "Committed", "Committed"]
    client.remove(id)
    assert_all_removed(client, serve, snapshotter, reference)
