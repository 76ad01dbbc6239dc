"""Snapshots written as layers of overlaybd: mounted by the kernel, and compared."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.core.snapshot import Kind
from lamina.errors import NotFound, ResourceExhausted
from lamina.formats.lsmt.layout import NO_UUID
from lamina.formats.lsmt.reader import open_layer
from lamina.formats.lsmt.stack import Stack, export_image
from lamina.images.blob_source import FileSource
from lamina.images.conversion_overlaybd import OverlaybdOptions
from lamina.images.snapshot_export import export_overlaybd
from lamina.store import Store
from tests.fixtures_command import Command
from tests.hard_image import chain, hard_image, load_image, tree
from tests.images import Layer
from tests.rafs import noise
from tests.trees import Entry, describe

pytest_plugins = ["tests.fixtures_command"]
pytestmark = [pytest.mark.root, pytest.mark.overlay, pytest.mark.loop]


@pytest.fixture
def store(root_dir: Path) -> Iterator[Store]:
    with Store(root_dir) as opened:
        yield opened


def shown(file: Path, directory: Path, *, own: bool = False) -> dict[str, Entry]:
    """Return what is in the filesystem of a layer's file; `own` is one that has lost+found."""
    device, at = directory / "device", directory / "mnt"
    with file.open("rb") as opened, device.open("wb") as out:
        layer = open_layer(FileSource(opened))
        assert (layer.about.uuid, layer.about.parent_uuid) == (NO_UUID, NO_UUID)
        export_image(Stack([layer]), out)
    subprocess.run(("e2fsck", "-fn", device), check=True, stdout=subprocess.DEVNULL)
    at.mkdir()
    subprocess.run(("mount", "-o", "loop,ro", device, at), check=True)
    try:
        found = describe(at)
        return {name: found[name] for name in found if own or name != "lost+found"}
    finally:
        subprocess.run(("umount", at), check=True)


@pytest.mark.parametrize("name", ["overlayfs", "native", "blockfile"])
def test_a_layer_shows_what_the_snapshot_does(root_dir: Path, tmp_path: Path, name: str) -> None:
    with Store(root_dir) as store:
        load_image(store, name, *hard_image())
        top = chain(store)[-1]
        expected = tree(store, name, top)
    command = Command(root_dir)
    file = tmp_path / "overlaybd.commit"
    options = ("--compressor", "zstd", "--bs", "64", "--vsize", "1")
    command.run("snapshots", "--snapshotter", name, "export", *options, top, file)
    found = shown(file, tmp_path)
    found["."] = expected["."]
    # blockfile's own filesystem has one, and is no part of the image.
    expected.pop("lost+found", None)
    assert found == expected
    assert {path.name for path in tmp_path.iterdir()} >= {"overlaybd.commit", "device", "mnt"}
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".overlaybd")]
    again = tmp_path / "again"
    command.run("snapshots", "--snapshotter", name, "export", *options, top, again)
    assert again.read_bytes() == file.read_bytes()
    assert command.out("fsck") == ""
    kinds = [
        each["Kind"] for each in command.json("snapshots", "--snapshotter", name, "ls", "--json")
    ]
    assert kinds == ["Committed"] * 4


def test_an_active_snapshot_with_its_changes(command: Command, tmp_path: Path) -> None:
    with Store(command.root) as store:
        load_image(store, "overlayfs", Layer.of({"kept": b"kept", "gone": b"gone"}))
        top = chain(store)[-1]
    command.run("snapshots", "prepare", "work", top)
    with Store(command.root) as store:
        upper = next(
            option.removeprefix("upperdir=")
            for option in store.snapshotter("overlayfs").mounts("work")[0].options
            if option.startswith("upperdir=")
        )
    (Path(upper) / "new").write_bytes(b"new")
    os.mknod(Path(upper) / "gone", 0o20000 | 0o600, 0)
    file = tmp_path / "layer"
    command.run("snapshots", "export", "--vsize", "1", "work", file)
    assert set(shown(file, tmp_path)) == {".", "kept", "new"}


def test_failures_leave_nothing_behind(store: Store, tmp_path: Path) -> None:
    load_image(store, "overlayfs", Layer.of({"a": noise(3 << 20)}))
    top = chain(store)[-1]
    engine, mounts = store.snapshotter("overlayfs"), store.images.mounts
    small = OverlaybdOptions(virtual_size=2 << 20)
    with (tmp_path / "out").open("w+b") as out:
        with pytest.raises(ResourceExhausted, match="the device is full"):
            export_overlaybd(engine, top, out, mounts=mounts, temporary=tmp_path, options=small)
        with pytest.raises(NotFound):
            export_overlaybd(engine, "none", out, mounts=mounts, temporary=tmp_path)
    assert "lamina-export" not in {thread.name for thread in threading.enumerate()}
    assert [info.kind for info in engine.walk()] == [Kind.COMMITTED]
    command = Command(store.root)
    file = tmp_path / "layer"
    file.write_bytes(b"before")
    command.error("snapshots", "export", "none", file, code=3)
    assert file.read_bytes() == b"before"
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {"out", "layer"}


def test_the_blocks_of_a_filesystem_of_its_own(root_dir: Path, tmp_path: Path) -> None:
    with Store(root_dir) as store:
        load_image(store, "blockfile", *hard_image())
        top = chain(store)[-1]
        expected = tree(store, "blockfile", top)
        engine = store.snapshotter("blockfile")
        [mount] = engine.view("look", top)
        size = Path(mount.source).stat().st_size
        engine.remove("look")
    command = Command(root_dir)
    verb = ("snapshots", "--snapshotter", "blockfile")
    file = tmp_path / "overlaybd.commit"
    command.run(*verb, "export", "--blocks", top, file)
    with file.open("rb") as opened:
        assert open_layer(FileSource(opened)).about.virtual_size == size
    assert shown(file, tmp_path, own=True) == expected
    assert command.out("fsck") == ""
    command.run(*verb, "prepare", "work", top)
    said = command.error(*verb, "export", "--blocks", "work", file, code=7)
    assert "it may be written to" in said
    assert [each["Kind"] for each in command.json(*verb, "ls", "--json")].count("Committed") == 4
    done = command.run(*verb, "export", "--blocks", "--vsize", "1", top, file, code=2)
    assert b"leave out --vsize" in done.stderr


def test_snapshots_without_a_filesystem_of_their_own(command: Command, tmp_path: Path) -> None:
    for name in ("overlayfs", "native"):
        with Store(command.root) as store:
            load_image(store, name, Layer.of({"a": b"a"}))
            top = chain(store)[-1]
        verb = ("snapshots", "--snapshotter", name, "export", "--blocks")
        said = command.error(*verb, top, tmp_path / "file", code=2)
        assert "its snapshotter keeps no filesystem for each" in said
        assert not (tmp_path / "file").exists()
