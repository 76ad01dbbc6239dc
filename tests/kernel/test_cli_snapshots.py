"""`lamina snapshots`, `content` and `fsck` as they are typed."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faulty_registry import FaultyRegistry, faulty_registry
from tests.fixtures_command import Command
from tests.fixtures_serve import Serve
from tests.images import ImageFiles
from tests.isolation import mount_points
from tests.roots import three_layers

pytestmark = [pytest.mark.root, pytest.mark.overlay]

PLAIN_TAR = "application/vnd.oci.image.layer.v1.tar"
BOTH = pytest.mark.parametrize("name", ["overlayfs", "native"])


@pytest.fixture
def faulty() -> Iterator[FaultyRegistry]:
    with faulty_registry() as running:
        yield running


def pulled(command: Command, faulty: FaultyRegistry, *options: str) -> tuple[str, ImageFiles]:
    files = three_layers()
    for blob in files.blobs:
        faulty.add_blob(blob)
    faulty.add_manifest("1", files.manifest)
    ref = f"{faulty.host}/app:1"
    command.run("images", "pull", "-q", "--plain-http", *options, ref)
    return ref, files


@pytest.fixture(params=["here", "daemon"])
def sound(
    request: pytest.FixtureRequest, command: Command, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], None]:
    """What is checked at the end; `snapshots` works on the command's root, or on a daemon's."""
    if request.param == "here":
        return command.assert_sound
    serve: Serve = request.getfixturevalue("serve")
    monkeypatch.setenv("LAMINA_ADDRESS", str(serve.address))

    def check() -> None:
        serve.command.assert_sound()
        assert not command.root.exists()

    return check


def fill(command: Command, name: str, key: str, files: dict[str, bytes], target: Path) -> None:
    """Write files into a snapshot, by the very commands that are printed."""
    target.mkdir(exist_ok=True)
    for line in command.out("snapshots", "--snapshotter", name, "mounts", target, key).splitlines():
        subprocess.run(shlex.split(line), check=True)
    try:
        for path, content in files.items():
            (target / path).write_bytes(content)
    finally:
        subprocess.run(["umount", target], check=True)


def names(layer: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
        return [member.name for member in archive]


@BOTH
def test_life_of_snapshots(
    command: Command, tmp_path: Path, name: str, sound: Callable[[], None]
) -> None:
    def snapshots(*words: object) -> str:
        return command.out("snapshots", "--snapshotter", name, *words)

    [mount] = json.loads(snapshots("prepare", "--mounts", "one"))
    assert sorted(mount) == ["Options", "Source", "Target", "Type"]
    assert snapshots("prepare", "-t", "/mnt", "throw-away").startswith("mount -t bind ")
    assert snapshots("rm", "throw-away") == ""
    fill(command, name, "one", {"a": b"1"}, tmp_path / "target")
    assert snapshots("commit", "base", "one") == ""
    assert snapshots("prepare", "two", "base") == ""
    assert snapshots("view", "look", "base") == ""
    assert [line.split() for line in snapshots("ls").splitlines()] == [
        ["KEY", "PARENT", "KIND"],
        ["base", "Committed"],
        ["look", "base", "View"],
        ["two", "base", "Active"],
    ]
    assert snapshots("ls", "kind==view").split()[3:] == ["look", "base", "View"]
    assert snapshots("tree") == " base\n  \\_ look\n  \\_ two\n"
    depths = [(row["Name"], row["Depth"]) for row in json.loads(snapshots("tree", "--json"))]
    assert depths == [("base", 0), ("look", 1), ("two", 1)]
    assert snapshots("label", "two", "a=b", "c").split("gc.root=")[0] == "a=b,c=true,containerd.io/"
    assert json.loads(snapshots("label", "--json", "two", "a=", "d=e"))["d"] == "e"
    assert snapshots("label", "two", "a=b", "d=").startswith("a=b,c=true,containerd.io/")
    assert snapshots("mounts", "--json", "/mnt", "two") == snapshots("mount", "--json", "/", "two")
    info = json.loads(snapshots("info", "two"))
    assert snapshots("info", "--json", "two") == snapshots("info", "two")
    assert (info["Kind"], info["Parent"], info["Labels"]["a"]) == ("Active", "base", "b")
    usage = {row["Key"]: row["Size"] for row in json.loads(snapshots("usage", "--json"))}
    assert usage["base"] > 0
    assert usage["look"] == 0
    said = command.error("snapshots", "--snapshotter", name, "rm", "base", code=7)
    assert said.startswith('lamina: remove snapshot "base": ')
    command.error("snapshots", "--snapshotter", name, "prepare", "two", code=4)
    command.error("snapshots", "--snapshotter", name, "info", "no\x1b[2J\nsuch", code=3)
    assert command.error("snapshots", "--snapshotter", name, "info", os.fsdecode(b"\xff"), code=2)
    snapshots("rm", "two", "look", "base")
    snapshots("cleanup")
    sound()


@BOTH
def test_fork(command: Command, tmp_path: Path, name: str, sound: Callable[[], None]) -> None:
    def snapshots(*words: object) -> str:
        return command.out("snapshots", "--snapshotter", name, *words)

    snapshots("prepare", "source")
    fill(command, name, "source", {"a": b"1"}, tmp_path / "target")
    assert snapshots("fork", "source", "plain") == ""
    [mount] = json.loads(snapshots("fork", "--mounts", "source", "fork"))
    assert [mount] == json.loads(snapshots("mounts", "--json", "/mnt", "fork"))
    said = snapshots("fork", "-t", "/mnt", "fork", "second")
    assert said == snapshots("mounts", "/mnt", "second")
    snapshots("rm", "source", "plain", "fork")
    labels = json.loads(snapshots("info", "second"))["Labels"]
    assert labels["containerd.io/snapshot/lamina.forked-from"] == "fork"
    assert labels["containerd.io/gc.root"]
    snapshots("commit", "base", "second")
    assert "a" in names(command.run("snapshots", "--snapshotter", name, "diff", "base").stdout)
    said = command.error("snapshots", "--snapshotter", name, "fork", "base", "x", code=7)
    assert said.startswith('lamina: fork snapshot "base": ')
    command.error("snapshots", "--snapshotter", name, "fork", "none", "x", code=3)
    snapshots("prepare", "source")
    command.error("snapshots", "--snapshotter", name, "fork", "source", "base", code=4)
    snapshots("rm", "source", "base")
    sound()


def test_snapshotters_that_are_not_there(command: Command) -> None:
    command.error("snapshots", "--snapshotter", "zfs", "ls", code=7)
    command.error("snapshots", "--snapshotter", "none", "ls", code=3)


@BOTH
def test_diff(command: Command, tmp_path: Path, name: str, sound: Callable[[], None]) -> None:
    def diff(*words: object) -> bytes:
        return command.run("snapshots", "--snapshotter", name, "diff", *words).stdout

    def snapshots(*words: object) -> None:
        command.run("snapshots", "--snapshotter", name, *words)

    target = tmp_path / "target"
    snapshots("prepare", "one")
    fill(command, name, "one", {"a": b"1", "b": b"2"}, target)
    assert names(diff("one")) == ["a", "b"]
    snapshots("commit", "base", "one")
    snapshots("prepare", "two", "base")
    fill(command, name, "two", {"c": b"3"}, target)
    active = diff("two")
    assert names(active) == ["c"]
    snapshots("commit", "top", "two")
    assert diff("top") == active
    assert names(diff("base")) == ["a", "b"]
    assert names(diff("base", "top")) == ["c"]
    assert names(diff("top", "base")) == [".wh.c"]
    assert diff("--media-type", PLAIN_TAR, "top").endswith(bytes(1024))
    command.error("snapshots", "--snapshotter", name, "diff", "none", code=3)
    command.run("snapshots", "diff", "--media-type", "text/html", "top", code=2)
    snapshots("rm", "top", "base")
    snapshots("cleanup")
    sound()


def test_diff_is_kept(command: Command, tmp_path: Path) -> None:
    command.run("snapshots", "prepare", "one")
    fill(command, "overlayfs", "one", {"a": b"1"}, tmp_path / "target")
    layer = command.run("snapshots", "diff", "--keep", "--label", "x=y", "one").stdout
    assert names(layer) == ["a"]
    command.run("snapshots", "diff", "one")
    [kept] = command.json("content", "ls", "--json")
    assert kept["Digest"] == f"sha256:{hashlib.sha256(layer).hexdigest()}"
    assert kept["Labels"]["x"] == "y"
    assert kept["Labels"].keys() == {"containerd.io/gc.root", "containerd.io/uncompressed", "x"}
    command.run("snapshots", "rm", "one")
    command.run("snapshots", "cleanup")
    assert len(command.json("content", "ls", "--json")) == 1
    command.assert_sound()


def test_unpack(command: Command, faulty: FaultyRegistry) -> None:
    _, files = pulled(command, faulty, "--no-unpack")
    said = command.out("snapshots", "unpack", "--sync-fs", files.digest)
    assert said == (
        f"unpacking {files.digest} (application/vnd.oci.image.manifest.v1+json)...done\n"
    )
    command.assert_sound(3)
    command.error("snapshots", "unpack", files.layers[0].digest, code=3)
    command.error("snapshots", "unpack", "sha256:x", code=2)


def test_unpack_to_a_daemon(
    command: Command, faulty: FaultyRegistry, serve: Serve, tmp_path: Path
) -> None:
    _, files = pulled(command, faulty, "--no-unpack")
    there = ("snapshots", "--address", serve.address)
    for _ in range(2):
        command.run(*there, "unpack", files.digest)
        command.assert_sound()
        serve.command.run("snapshots", "cleanup")
        tree = serve.command.json("snapshots", "tree", "--json")
        rooted = ["containerd.io/gc.root" in row["Labels"] for row in tree]
        assert ([row["Depth"] for row in tree], rooted) == ([0, 1, 2], [False, False, True])
    command.run("snapshots", "unpack", files.digest)
    assert command.json("snapshots", "ls", "--json") != []
    here = names(command.run("snapshots", "diff", tree[-1]["Name"]).stdout)
    assert names(command.run(*there, "diff", tree[-1]["Name"]).stdout) == here != []
    command.error(*there, "unpack", files.layers[0].digest, code=3)
    command.run(*there, "unpack", "--sync-fs", files.digest, code=2)
    command.run(*there, "rm", tree[-1]["Name"])
    serve.command.run("snapshots", "cleanup")
    serve.command.assert_sound()


def test_a_failed_unpack_leaves_a_daemon_nothing_for_good(
    command: Command, faulty: FaultyRegistry, serve: Serve
) -> None:
    _, files = pulled(command, faulty, "--no-unpack")
    directory = command.root / "io.containerd.content.v1.content/blobs/sha256"
    blob = directory / files.layers[2].digest.removeprefix("sha256:")
    blob.chmod(0o600)
    blob.write_bytes(blob.read_bytes()[:-1] + b"?")
    command.run("snapshots", "--address", serve.address, "unpack", files.digest, code=None)
    left = serve.snapshots("overlayfs")
    assert [each["Kind"] for each in left] == ["Committed", "Committed"]
    serve.command.run("snapshots", "cleanup")
    assert serve.snapshots("overlayfs") == []


def test_a_daemon_that_is_not_there(command: Command, serve: Serve, tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    said = command.error("snapshots", "--address", absent, "ls", code=12)
    assert str(absent) in said
    there = ("snapshots", "ls", "-a", f"unix://{serve.address}")
    assert command.out(*there).split() == ["KEY", "PARENT", "KIND"]
    assert "not loaded: none" in command.error(*there, "--snapshotter", "none", code=2)
    command.run("snapshots", "--address", "", "ls", code=2)
    assert not command.root.exists()


def test_content(command: Command, faulty: FaultyRegistry) -> None:
    ref, files = pulled(command, faulty)
    heading, *rows = command.out("content", "ls").splitlines()
    assert heading.split() == ["DIGEST", "SIZE", "AGE", "LABELS"]
    assert len(rows) == 5
    layer = files.layers[0]
    assert command.out("content", "ls", "-q", f"size=={len(layer.blob)}").split() != []
    assert command.run("content", "get", layer.digest).stdout == layer.blob
    [described] = command.json("content", "ls", "--json", f"digest=={layer.digest}")
    assert described["Labels"]["containerd.io/uncompressed"] == layer.diff_id
    assert command.out("content", "rm", layer.digest) == f"{layer.digest}\n"
    command.error("content", "rm", layer.digest, code=3)
    command.error("content", "get", layer.digest, code=3)
    command.error("content", "get", "../../etc/passwd", code=2)
    command.run("images", "rm", ref)
    command.assert_sound()


_HOLDER = """
import lamina, sys, time
from lamina.mount import temp_mount
with lamina.open(sys.argv[1]) as store:
    mounts = store.snapshotter("native").prepare("held")
    with temp_mount(mounts, dir=store.images.mounts) as path:
        print(path, flush=True)
        time.sleep(60)
"""


def test_temporary_mounts_of_a_killed_process_are_swept(command: Command) -> None:
    """Those of a living one are not."""
    program = [sys.executable, "-c", _HOLDER, str(command.root)]
    process = subprocess.Popen(program, stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process, process.stdout as said:
        path = said.readline().decode().strip()
        command.run("snapshots", "cleanup")
        assert path in mount_points()
        process.send_signal(signal.SIGKILL)
    assert path in mount_points()
    assert path.rpartition("/")[0] in command.run("fsck", code=13).stdout.decode()
    command.run("snapshots", "cleanup")
    assert path not in mount_points()
    assert list((command.root / "tmpmounts").iterdir()) == []
    command.run("snapshots", "--snapshotter", "native", "rm", "held")
    command.run("snapshots", "cleanup")
    command.assert_sound()


def test_two_at_once_with_one_key(command: Command) -> None:
    processes = [command.start("snapshots", "prepare", "same") for _ in range(4)]
    for process in processes:
        process.communicate(timeout=60)
    assert sorted(process.returncode for process in processes) == [0, 4, 4, 4]


def test_names_may_be_hostile_to_terminals(command: Command) -> None:
    key = "a\x1b[2J\nb\u202e"
    command.run("snapshots", "prepare", key)
    shown = command.out("snapshots", "ls") + command.out("snapshots", "tree")
    assert "\x1b" not in shown
    assert "a\\x1b[2J\\nb\\u202e" in shown
    assert command.json("snapshots", "info", key)["Name"] == key
    assert command.error("snapshots", "prepare", os.fsdecode(b"\xff"), code=2)
