"""The fuse-overlayfs snapshotter: its program started, looked after, killed and gone again."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import lamina
import lamina.tools.lookup
from lamina.core.mount import FUSE_OVERLAYFS, Mount
from lamina.errors import LaminaError, SnapshotterSkipped
from lamina.formats.compression import Compression
from lamina.layer.snapshot_diff import write_snapshot_diff
from lamina.linux.mountinfo import mounts_at_or_below
from lamina.mount import mount_all, temp_mount, unmount_all
from lamina.snapshotters.engine import Engine
from lamina.snapshotters.fuse_overlayfs.plugin import PLUGIN, FuseOverlayConfig
from tests.fixtures_containers import IMAGE, Machine, wait_for
from tests.fixtures_registry import LocalRegistry
from tests.images import Layer, image
from tests.isolation import runs
from tests.roots import Root
from tests.trees import describe

pytestmark = [pytest.mark.root, pytest.mark.fuse]

CONFIG = FuseOverlayConfig()
NAME = "fuse-overlayfs"


def open_engine(root: Path) -> Engine:
    return Engine(NAME, PLUGIN.load(CONFIG, root), root, sync_remove=True)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with open_engine(tmp_path / "sn") as engine:
        yield engine
        assert servers(tmp_path) == [], "the program ends with the mount"


def servers(directory: Path) -> list[int]:
    """Return the processes that serve a mount of directories below this one, once some may end."""
    deadline = time.monotonic() + 60
    while (found := list(_servers(directory))) and not mounts_at_or_below(directory):
        if time.monotonic() > deadline:
            break
        time.sleep(0.01)
    return found


def _servers(directory: Path) -> Iterator[int]:
    for process in Path("/proc").iterdir():
        if not process.name.isdecimal():
            continue
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        is_one = words[0].endswith(b"fuse-overlayfs") and os.fsencode(directory) in b" ".join(words)
        if is_one and runs(int(process.name)):
            yield int(process.name)


def commit(engine: Engine, name: str, parent: str, work: Path, **files: str) -> None:
    with temp_mount(engine.prepare("key", parent), dir=work) as root:
        for file, content in files.items():
            (root / file).write_text(content)
    engine.commit(name, "key")


def two_layers(engine: Engine, work: Path) -> None:
    commit(engine, "one", "", work, a="1", b="1")
    commit(engine, "two", "one", work, b="2")


# Mounts


def test_it_merges_and_writes_and_ends(engine: Engine, tmp_path: Path) -> None:
    two_layers(engine, tmp_path)
    mounts = engine.prepare("active", "two")
    with temp_mount(mounts, dir=tmp_path) as root:
        assert len(servers(tmp_path)) == 1
        assert sorted(os.listdir(root)) == ["a", "b"]
        (root / "a").unlink()
        os.mknod(root / "null", 0o020666, os.makedev(1, 3))
        (root / "null").write_text("devices work")
        [info] = mounts_at_or_below(root)
        assert info.type == "fuse.fuse-overlayfs"
    assert servers(tmp_path) == []
    with temp_mount(mounts, dir=tmp_path, read_only=True) as root:
        assert sorted(os.listdir(root)) == ["b", "null"]
        with pytest.raises(OSError, match="Read-only"):
            (root / "b").write_text("no")


def test_two_hundred_layers(engine: Engine, tmp_path: Path) -> None:
    """All paths are in the program's arguments, many times the page that mount(2) takes."""
    parent = ""
    for number in range(200):
        engine.prepare("key", parent)
        storage = tmp_path / "sn/snapshots" / str(number + 1) / "fs"
        (storage / f"file{number}").touch()
        parent = f"layer {number}"
        engine.commit(parent, "key")
    [mount] = mounts = engine.prepare("active", parent)
    assert len(mount.option("lowerdir") or "") > 2 * os.sysconf("SC_PAGESIZE")
    with temp_mount(mounts, dir=tmp_path) as root:
        assert len(os.listdir(root)) == 200
        (root / "file0").unlink()
        assert len(os.listdir(root)) == 199


def test_a_path_with_commas_spaces_and_quotes(tmp_path: Path) -> None:
    place = tmp_path / "a,b c'd\"e\\f$HOME"
    place.mkdir()
    with open_engine(place / "sn") as engine:
        two_layers(engine, tmp_path)
        with temp_mount(engine.prepare("active", "two"), dir=tmp_path) as root:
            assert (root / "b").read_text() == "2"
    with pytest.raises(LaminaError, match="a colon separates layers"):
        open_engine(tmp_path / "a:b")


def test_a_killed_program_is_told_by_the_kernel(engine: Engine, tmp_path: Path) -> None:
    two_layers(engine, tmp_path)
    point = tmp_path / "at"
    point.mkdir()
    mounts = engine.prepare("active", "two")
    mount_all(mounts, point)
    (point / "kept").write_text("written before")
    [process] = servers(tmp_path)
    os.kill(process, signal.SIGKILL)
    wait_for(lambda: not runs(process))
    with pytest.raises(OSError, match="not connected") as caught:
        os.listdir(point)
    assert caught.value.errno == errno.ENOTCONN
    unmount_all(mounts, point)
    assert not mounts_at_or_below(tmp_path)
    with temp_mount(mounts, dir=tmp_path) as root:
        assert (root / "kept").read_text() == "written before"
    engine.commit("three", "active")


def test_what_cannot_be_mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {name: shutil.which(name) or "" for name in ("mount.fuse3", "sh")}
    point = tmp_path / "at"
    point.mkdir()
    layers = ":".join(f"{tmp_path}/layer{number}" for number in range(100))
    mount = Mount(FUSE_OVERLAYFS, "overlay", options=(f"lowerdir={layers}",))
    with pytest.raises(LaminaError, match=r"cannot read lower dirs.*no directory .*/layer0$") as e:
        mount_all([mount], point)
    assert len(str(e.value)) < 500, "the command line is not repeated"
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(LaminaError, match=r"mount\.fuse3 is not installed; apt-get install fuse3$"):
        mount_all([mount], point)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("mount.fuse3", "sh"):
        (programs / name).symlink_to(found[name])
    monkeypatch.setenv("PATH", str(programs))
    said = r"fuse-overlayfs is not installed; apt-get install fuse-overlayfs$"
    with pytest.raises(LaminaError, match=said):
        mount_all([mount], point)
    with pytest.raises(SnapshotterSkipped) as skipped:
        PLUGIN.load(CONFIG, tmp_path / "sn")
    assert skipped.value.fix == "apt-get install fuse-overlayfs fuse3"
    assert not lamina.tools.lookup.installed("fuse-overlayfs")
    assert not mounts_at_or_below(tmp_path)


def test_probe_says_what_the_program_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PLUGIN.probe(CONFIG, tmp_path)
    assert list(tmp_path.iterdir()) == []
    programs = tmp_path / "bin"
    programs.mkdir()
    program = programs / "fuse-overlayfs"
    program.write_text("#!/bin/sh\necho 'fuse-overlayfs: version 0.7.8'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    with pytest.raises(SnapshotterSkipped, match=r"writable mounts: .*nothing is mounted"):
        PLUGIN.probe(CONFIG, tmp_path)
    assert PLUGIN.needs[0].probe(tmp_path) == "version 0.7.8 is too old"
    program.write_text("#!/bin/sh\necho 'fuse-overlayfs: version 1.10'\n")
    assert PLUGIN.needs[0].probe(tmp_path) is None
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SnapshotterSkipped, match=r"not installed.*apt-get install"):
        PLUGIN.probe(CONFIG, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


def test_probe_wants_deletions_to_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that shows what the layers above delete is of no use."""
    programs = tmp_path / "bin"
    programs.mkdir()
    real = shutil.which("fuse-overlayfs")
    program = programs / "fuse-overlayfs"
    program.write_text(f'#!/bin/sh\nfind {tmp_path} -type c -delete\nexec {real} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    with pytest.raises(SnapshotterSkipped, match="the mount shows deleted, lower2, new"):
        PLUGIN.probe(CONFIG, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


# Images


@pytest.fixture
def root(root_dir: Path) -> Iterator[Root]:
    made = Root(root_dir)
    directory = PLUGIN.directory(CONFIG, root_dir)
    made.engines[NAME] = open_engine(directory)
    yield made
    made.close()
    assert servers(root_dir) == []


@pytest.mark.overlay
@pytest.mark.registry
def test_unpacked_as_overlayfs_does(root: Root, registry: LocalRegistry) -> None:
    """Entry for entry, deletions and opaque directories included, in storage and as shown."""
    base = {"d/": None, "d/a": b"a", "d/e/": None, "d/e/x": b"x", "f": b"f"}
    opaque = {"d/": None, "d/.wh.a": b"", "d/e/": None, "d/e/.wh..wh..opq": b"", "d/e/new": b"n"}
    files = image(
        Layer.of({**base, "g/": None, "g/y": b"y"}),
        Layer.of({**opaque, ".wh.f": b""}),
        Layer.of({".wh.g": b"", "f/": None, "f/z": b"z"}),
        Layer.of({"d/": None, "d/e/": None, "d/e/.wh.new": b"", "g/": None, "g/w": b"w"}),
    )
    registry.push(files.manifest, files.blobs, "test", "1")
    shown, stored = {}, {}
    for name in ("overlayfs", NAME):
        pulled = root.pull(f"{registry.host}/test:1", name)
        assert root.files(pulled, name) == {"f/z": b"z", "g/w": b"w"}
        engine = root.engines[name]
        mounts = engine.view("v", pulled.unpacked[0].chain_id or "")
        with temp_mount(mounts, dir=root.store.mounts) as path:
            shown[name] = entries(path)
        engine.remove("v")
        directory = root.root / f"io.containerd.snapshotter.v1.{name}/snapshots"
        stored[name] = sorted(str(entries(path)) for path in directory.glob("*/fs"))
        root.assert_clean(name, 4)
    assert sorted(shown[NAME]) == ["d", "d/e", "f", "f/z", "g", "g/w"]
    assert shown[NAME] == shown["overlayfs"]
    assert stored[NAME] == stored["overlayfs"]
    assert any("'opaque'" in layer for layer in stored[NAME])


def entries(root: Path) -> dict[str, object]:
    """Return what is there but for the root directory itself, which was made just now."""
    found: dict[str, object] = {}
    for name, entry in describe(root).items():
        marks = os.listxattr(root / name, follow_symlinks=False)
        kept = ["opaque" for mark in marks if mark == "trusted.overlay.opaque"]
        if entry.mode.startswith("c"):  # a whiteout, whose time is that of the unpacking
            entry = entry._replace(mtime_ns=0)
        found[name] = (entry._replace(same_file=""), kept)
    del found["."]
    return found


def test_a_changed_tree_is_compared_through_the_mount(engine: Engine, tmp_path: Path) -> None:
    """Nothing that the program notes for itself in the upper directory is in the layer."""
    with temp_mount(engine.prepare("key"), dir=tmp_path) as root:
        for directory in ("gone", "anew", "same"):
            (root / directory).mkdir()
            (root / directory / "x").touch()
    engine.commit("base", "key")
    mounts = engine.prepare("active", "base")
    archive = tmp_path / "layer.tar"
    with temp_mount(mounts, dir=tmp_path) as root, archive.open("wb") as file:
        for directory in ("gone", "anew"):
            shutil.rmtree(root / directory)
        (root / "anew").mkdir()
        (root / "anew/y").touch()
        write_snapshot_diff(
            engine, "active", file.write, mounts=tmp_path, compression=Compression.NONE
        )
    with tarfile.open(archive) as layer:
        names = [name.removeprefix("./") for name in layer.getnames()]
    assert sorted(names) == [".wh.gone", "anew", "anew/.wh.x", "anew/y"]


@pytest.mark.overlay
@pytest.mark.runtime
def test_checkout_and_commit(machine: Machine) -> None:
    with lamina.open(machine.root) as store:
        with store.checkout(IMAGE, snapshotter=NAME) as changed:
            (changed.path / "new").write_text("x")
            (changed.path / "etc/group").unlink()
            changed.commit("changed")
        with store.checkout("changed", snapshotter=NAME) as again:
            assert (again.path / "new").read_text() == "x"
            assert not (again.path / "etc/group").exists()
        assert store.snapshotter(NAME).fsck() == []
    assert servers(machine.root) == []


# Containers


@pytest.mark.runtime
@pytest.mark.overlay
def test_containers(machine: Machine) -> None:
    snapshotter = ("--snapshotter", NAME)
    script = "echo x > /file && cat /file && mount | grep ' / '"
    done = machine.lamina("run", "--rm", *snapshotter, "busybox", machine.id, "sh", "-c", script)
    assert done.stdout.startswith("x\nfuse-overlayfs on / type fuse.fuse-overlayfs")
    assert servers(machine.root) == []
    machine.lamina("run", "-d", *snapshotter, "busybox", machine.id, "sleep", "1000")
    assert len(servers(machine.root)) == 1
    machine.lamina("tasks", "rm", "-f", machine.id, code=137)
    machine.lamina("containers", "rm", machine.id)
    assert machine.leftovers() == []
    assert servers(machine.root) == []
    assert "Active" not in machine.lamina("snapshots", *snapshotter, "ls").stdout


@pytest.mark.runtime
@pytest.mark.overlay
def test_container_with_ids_of_its_own(machine: Machine) -> None:
    """The program shows the image's owners as the user namespace's; on disk they stay."""
    for path in (machine.root, *machine.root.parents):
        if path.is_relative_to(os.environ["TMPDIR"]):
            path.chmod(0o711)
    maps = ("--remap-labels", "--uidmap", "0:100000:65536", "--gidmap", "0:200000:65536")
    script = "cat /proc/self/uid_map; echo x > /new; ls -ln /new /etc/passwd"
    argv = ("run", "--snapshotter", NAME, *maps, "busybox", machine.id, "sh", "-c", script)
    words = machine.lamina(*argv).stdout.split()
    assert words[:3] == ["0", "100000", "65536"]
    assert words.count("-rw-r--r--") == 2
    assert [words[i + 2 : i + 4] for i, w in enumerate(words) if w == "-rw-r--r--"] == [
        ["0"] * 2
    ] * 2
    [new] = (PLUGIN.directory(CONFIG, machine.root) / "snapshots").glob("*/fs/new")
    assert (new.stat().st_uid, new.stat().st_gid) == (0, 0)
    machine.lamina("containers", "rm", machine.id)
    assert machine.leftovers() == []


@pytest.mark.runtime
@pytest.mark.overlay
def test_a_killed_command_leaves_no_process_for_good(machine: Machine) -> None:
    argv = ("run", "--snapshotter", NAME, "busybox", machine.id, "sleep", "1000")
    with machine.start(*argv) as process:
        wait_for(lambda: machine.id in machine.tasks(), seconds=60)
        process.kill()
    assert len(servers(machine.root)) == 1, "the container goes on"
    machine.lamina("tasks", "rm", "-f", machine.id, code=None)
    machine.lamina("containers", "rm", machine.id)
    assert servers(machine.root) == []
    assert machine.leftovers() == []
