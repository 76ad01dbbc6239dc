"""`lamina snapshots --address` on a containerd's snapshots: what it prints is what `ctr` does."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from lamina.api.channel import Channel
from lamina.api.client import RemoteSnapshotter
from lamina.core.labels import GC_ROOT
from lamina.core.snapshot import Kind
from lamina.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    NotImplementedHere,
)
from tests.faulty_registry import faulty_registry
from tests.fixtures_command import Command
from tests.fixtures_containerd import Containerd
from tests.kernel.test_cli_snapshots import fill, names
from tests.roots import three_layers

pytestmark = [pytest.mark.root, pytest.mark.overlay, pytest.mark.containerd]


@pytest.fixture(autouse=True)
def address(containerd: Containerd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMINA_ADDRESS", str(containerd.address))


def rows(table: str) -> list[list[str]]:
    return [line.split() for line in table.splitlines()]


@pytest.mark.parametrize("name", ["overlayfs", "native"])
def test_every_verb(command: Command, containerd: Containerd, tmp_path: Path, name: str) -> None:
    def lamina(*words: object) -> str:
        return command.out("snapshots", "--snapshotter", name, *words)

    def ctr(*words: str) -> str:
        return containerd.ctr("snapshots", "--snapshotter", name, *words)

    collect(containerd)  # after the one that it begins with, none is due until something is removed
    assert lamina("prepare", "-t", "/mnt", "one").startswith("mount -t bind ")
    fill(command, name, "one", {"a": b"1"}, tmp_path / "target")
    lamina("commit", "base", "one")
    [mount] = json.loads(lamina("prepare", "--mounts", "two", "base"))
    assert sorted(mount) == ["Options", "Source", "Target", "Type"]
    fill(command, name, "two", {"b": b"2"}, tmp_path / "target")
    lamina("view", "look", "base")
    assert rows(lamina("ls")) == rows(ctr("ls"))
    assert lamina("ls", "kind==view").split()[3:] == ["look", "base", "View"]
    assert lamina("tree") == ctr("tree") == " base\n  \\_ look\n  \\_ two\n"
    for key in ("base", "look", "two"):
        assert same_info(json.loads(lamina("info", key)), json.loads(ctr("info", key)))
    for key in ("look", "two"):
        assert lamina("mounts", "/mnt", key) == ctr("mounts", "/mnt", key)
    assert rows(lamina("usage", "-b")) == rows(ctr("usage", "-b"))
    lamina("rm", "look")  # before any collection: it is no root
    assert lamina("label", "two", "a=b", "c").startswith("a=b,c=true,containerd.io/gc.root=20")
    labels = lamina("label", "two", "a=").strip().split(",")
    assert sorted(labels) == sorted(ctr("label", "two").strip().split(","))
    assert labels[0] == "c=true"
    for words in (("two",), ("base",), ("base", "two"), ("two", "base")):
        layer = command.run("snapshots", "--snapshotter", name, "diff", *words).stdout
        assert entries(layer) == entries(
            ctr_diff(containerd, "--snapshotter", name, "diff", *words)
        )
    said = command.error("snapshots", "--snapshotter", name, "rm", "base", code=7)
    assert "cannot remove snapshot with child: failed precondition" in said
    command.error("snapshots", "--snapshotter", name, "prepare", "two", code=4)
    command.error("snapshots", "--snapshotter", name, "info", "none", code=3)
    command.error("snapshots", "--snapshotter", name, "ls", "kind===", code=1)  # UNKNOWN, of a List
    lamina("rm", "two", "base")
    command.run("snapshots", "--snapshotter", name, "cleanup", code=None)
    assert rows(ctr("ls")) == [["KEY", "PARENT", "KIND"]]
    assert not command.root.exists()


def same_info(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    """Compare two descriptions, times by their seconds."""
    for time in ("Created", "Updated"):
        assert ours.pop(time)[:19] == theirs.pop(time)[:19]
    return ours == theirs


def entries(layer: bytes) -> list[tuple[str, bytes, int]]:
    with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
        return [(member.name, member.type, member.size) for member in archive]


def ctr_diff(containerd: Containerd, *words: str) -> bytes:
    done = subprocess.run(containerd.argv("snapshots", *words), capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def collect(containerd: Containerd) -> None:
    containerd.ctr("leases", "create", "--id", "ends-at-once")
    containerd.ctr("leases", "delete", "--sync", "ends-at-once")


def test_unpack(command: Command, containerd: Containerd) -> None:
    """What is unpacked stays until the top layer is removed, and then all of it goes."""
    files = three_layers()
    with faulty_registry() as registry:
        for blob in files.blobs:
            registry.add_blob(blob)
        registry.add_manifest("1", files.manifest)
        ref = f"{registry.host}/app:1"
        command.run("images", "pull", "-q", "--plain-http", "--no-unpack", ref)
    assert command.out("snapshots", "unpack", files.digest).endswith("...done\n")
    collect(containerd)
    tree = command.json("snapshots", "tree", "--json")
    assert [(row["Depth"], row["Kind"]) for row in tree] == [(n, "Committed") for n in range(3)]
    top = tree[-1]["Name"]
    assert names(command.run("snapshots", "diff", top).stdout) == ["big2", "etc", "etc/c"]
    containerd.ctr("snapshots", "rm", top)
    collect(containerd)
    assert command.json("snapshots", "ls", "--json") == []
    command.assert_sound()


def test_namespaces(command: Command, containerd: Containerd) -> None:
    command.run("snapshots", "prepare", "mine")
    command.run("snapshots", "-n", "other", "prepare", "theirs")
    assert rows(command.out("snapshots", "ls"))[1:] == [["mine", "Active"]]
    assert rows(containerd.ctr("-n", "other", "snapshots", "ls"))[1:] == [["theirs", "Active"]]
    assert "not loaded" in command.error("snapshots", "--snapshotter", "none", "ls", code=2)


def test_client(containerd: Containerd) -> None:
    """The error classes and the texts are those of the containerd."""
    with Channel(containerd.address, timeout=30) as channel:
        remote = RemoteSnapshotter(channel, "overlayfs", namespace="default")
        with pytest.raises(NotFound) as missing:
            remote.stat("none")
        assert str(missing.value) == "snapshot none does not exist: not found"
        for number in range(250):
            remote.prepare(f"{number:03}", labels={GC_ROOT: "x", "l": "v" * 1000})
        assert [info.name for info in remote.walk()] == [f"{n:03}" for n in range(250)]
        assert next(remote.walk()).name == "000"
        with pytest.raises(AlreadyExists):
            remote.prepare("000")
        remote.commit("base", "000", labels={GC_ROOT: "x"})
        with pytest.raises(FailedPrecondition):
            remote.mounts("base")
        with pytest.raises(InvalidArgument):
            remote.update(remote.stat("base"), "parent")
        assert remote.stat("base").kind == Kind.COMMITTED
        assert remote.usage("base").inodes == 1
        with contextlib.suppress(NotImplementedHere):  # containerd 1.6
            remote.cleanup()
        no_namespace = RemoteSnapshotter(channel, "overlayfs")
        with pytest.raises(FailedPrecondition, match="namespace is required"):
            no_namespace.stat("base")


def test_fork_by_containerds_own_snapshotter_is_refused(
    command: Command, containerd: Containerd
) -> None:
    """It ignores the label and makes an unchanged snapshot: that is noticed, and taken back."""
    command.out("snapshots", "prepare", "source")
    said = command.error("snapshots", "fork", "source", "fork", code=10)
    assert "it is not Lamina's" in said
    assert [line[0] for line in rows(command.out("snapshots", "ls"))] == ["KEY", "source"]
