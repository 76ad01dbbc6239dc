"""Checkouts: what they see, what becomes of them, and what a killed process leaves."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import lamina
from lamina.core.snapshot import Kind
from lamina.errors import FailedPrecondition, InvalidArgument, NotFound
from lamina.formats.compression import Compression
from lamina.store import Store
from tests.faulty_registry import FaultyRegistry, faulty_registry
from tests.fixtures_containers import Machine
from tests.isolation import mount_points
from tests.roots import three_layers

pytestmark = [pytest.mark.root, pytest.mark.overlay]

BOTH = pytest.mark.parametrize("name", ["overlayfs", "native"])


@pytest.fixture
def faulty() -> Iterator[FaultyRegistry]:
    with faulty_registry() as running:
        yield running


@pytest.fixture
def store(root_dir: Path) -> Iterator[Store]:
    with lamina.open(root_dir) as opened:
        yield opened


@pytest.fixture
def ref(store: Store, faulty: FaultyRegistry) -> str:
    """An image of three layers, pulled, not unpacked."""
    files = three_layers()
    for blob in files.blobs:
        faulty.add_blob(blob)
    faulty.add_manifest("1", files.manifest)
    reference = f"{faulty.host}/app:1"
    store.pull(reference, plain_http=True, unpack=False)
    return reference


def assert_none_left(store: Store, name: str) -> None:
    infos = list(store.snapshotter(name).walk())
    assert {info.kind for info in infos} <= {Kind.COMMITTED}
    assert list((store.root / "checkouts").iterdir()) == []
    assert [point for point in mount_points() if point.startswith(str(store.root))] == []
    assert store.images.leases.all() == []
    assert store.fsck() == []


@BOTH
def test_changes_are_discarded(store: Store, ref: str, name: str) -> None:
    for text in ("one", "two"):
        with store.checkout(ref, snapshotter=name) as tree:
            assert (tree.path / "etc/a").read_bytes() == b"new a"
            assert not (tree.path / "etc/b").exists()
            (tree.path / "etc/a").write_text(text)
    assert_none_left(store, name)


@BOTH
def test_fork(store: Store, ref: str, name: str) -> None:
    with store.checkout(ref, snapshotter=name) as tree:
        (tree.path / "new").write_text("before")
        with tree.fork() as copy:
            (tree.path / "new").write_text("after")
            assert (copy.path / "new").read_text() == "before"
            assert (copy.path / "etc/a").read_bytes() == b"new a"
            (copy.path / "etc/a").unlink()
            with copy.fork() as second:
                copy.commit("forked:1")
                assert not (second.path / "etc/a").exists()
        assert (tree.path / "etc/a").exists()
        tree.discard()
        with pytest.raises(FailedPrecondition, match="fork a checkout that is over"), tree.fork():
            pass
    with store.checkout("forked:1", snapshotter=name) as tree:
        assert (tree.path / "new").read_text() == "before"
        assert not (tree.path / "etc/a").exists()
    assert_none_left(store, name)


@BOTH
def test_diff_and_commit(store: Store, ref: str, name: str, tmp_path: Path) -> None:
    with store.checkout(ref, snapshotter=name) as tree:
        (tree.path / "etc/c").unlink()
        (tree.path / "new").write_bytes(b"made")
        layer = io.BytesIO()
        tree.diff(layer, compression=Compression.NONE)
        with tarfile.open(fileobj=io.BytesIO(layer.getvalue())) as archive:
            assert archive.getnames() == ["etc", "etc/.wh.c", "new"]
        image = tree.commit("changed:1", comment="a test")
        with pytest.raises(FailedPrecondition):
            tree.diff(io.BytesIO())
        with pytest.raises(FailedPrecondition):
            tree.commit("again")
        tree.discard()
    assert image.name == "docker.io/library/changed:1"
    assert_none_left(store, name)

    store.remove_image(ref)
    collected = store.collect()
    assert collected.snapshots == ()
    archive_path = tmp_path / "archive"
    with archive_path.open("wb") as out:
        store.export_images(["changed:1"], out)
    other = tmp_path / "other"
    with lamina.open(other) as second:
        second.import_images(archive_path, snapshotter=name)
        with second.checkout("changed:1", snapshotter=name) as tree:
            assert (tree.path / "new").read_bytes() == b"made"
            assert (tree.path / "etc/a").read_bytes() == b"new a"
            assert not (tree.path / "etc/c").exists()

    store.remove_image("changed:1")
    assert len(store.collect().snapshots) == 4
    assert list(store.images.content.walk()) == []
    assert store.fsck() == []


def test_commit_in_turn_and_in_place_of_another(store: Store, ref: str) -> None:
    for number in range(3):
        with store.checkout(ref if number == 0 else "grown") as tree:
            (tree.path / f"file{number}").touch()
            tree.commit("grown")
    with store.checkout("grown") as tree:
        assert sorted(path.name for path in tree.path.glob("file*")) == ["file0", "file1", "file2"]
    store.remove_image("grown")
    store.collect()
    assert_none_left(store, "overlayfs")


def test_what_only_a_replaced_image_named_is_collected(store: Store, ref: str) -> None:
    for content in ("first", "second"):
        with store.checkout(ref) as tree:
            (tree.path / "file").write_text(content)
            tree.commit("changed")
    blobs = {info.digest for info in store.images.content.walk()}
    assert len(blobs) == 5 + 3  # of each image but the replaced one; the base layers are shared
    assert len(list(store.snapshotter().walk())) == 3 + 1
    assert store.collect().blobs == ()


def test_a_commit_that_fails_leaves_nothing(store: Store, ref: str) -> None:
    """Its image has been removed meanwhile, so there is nothing to put the layer on."""
    with store.checkout(ref) as tree:
        (tree.path / "file").touch()
        store.remove_image(ref)
        store.collect()
        with pytest.raises(NotFound):
            tree.commit("changed")
        assert (tree.path / "file").exists()
        assert list(store.images.content.walk()) == []
    assert_none_left(store, "overlayfs")


def test_equal_changes_are_one_layer(store: Store, ref: str) -> None:
    with store.checkout(ref) as first, store.checkout(ref) as second:
        assert first.path != second.path
        for tree in (first, second):
            (tree.path / "same").touch()
            (tree.path / "same").chmod(0o600)
        for tree, tag in ((first, "a"), (second, "b")):
            tree.commit(f"same:{tag}")
    assert_none_left(store, "overlayfs")


def test_errors_leave_nothing(store: Store, ref: str) -> None:
    with pytest.raises(NotFound), store.checkout("never/pulled"):
        pass
    with pytest.raises(NotFound), store.checkout(ref, snapshotter="none"):
        pass
    with pytest.raises(InvalidArgument), store.checkout(ref) as tree:
        tree.commit("Not a Reference")
    with pytest.raises(RuntimeError, match="mine"), store.checkout(ref):
        raise RuntimeError("mine")
    assert_none_left(store, "overlayfs")


_HOLDER = """
import lamina, sys, time
root, ref, name = sys.argv[1:]
with lamina.open(root) as store, store.checkout(ref, snapshotter=name) as tree:
    (tree.path / "written").touch()
    print(tree.path, flush=True)
    time.sleep(60)
"""


@BOTH
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_the_process_that_has_it_ends(
    store: Store, ref: str, name: str, number: signal.Signals
) -> None:
    """Killed, it leaves all to the next checkout; interrupted, it clears up itself."""
    program = [sys.executable, "-c", _HOLDER, str(store.root), ref, name]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    with process, process.stdout as said:
        path = said.readline().decode().strip()
        with store.checkout(ref, snapshotter=name):
            assert path in mount_points()  # it lives: its checkout is not swept
        process.send_signal(number)
    assert (path in mount_points()) == (number == signal.SIGKILL)
    with store.checkout(ref, snapshotter=name) as tree:
        assert path not in mount_points()
        assert not (tree.path / "written").exists()
    assert_none_left(store, name)


@pytest.mark.runtime
def test_a_committed_image_runs(machine: Machine) -> None:
    with lamina.open(machine.root) as store:
        [base] = store.images.catalogue.walk()
        with store.checkout(base.name) as tree:
            (tree.path / "said").write_text("from the checkout\n")
            tree.commit("changed:1")
        store.remove_image(base.name)
        store.collect()
    done = machine.lamina("run", "--rm", "changed:1", machine.id, "cat", "/said")
    assert done.stdout == "from the checkout\n"


@pytest.mark.runtime
def test_an_image_is_removed_under_its_containers(machine: Machine) -> None:
    """They go on, on layers that go with the last of them."""
    [name] = machine.lamina("images", "ls", "-q").stdout.split()
    machine.lamina("run", "-d", name, machine.id, "sleep", "100")
    machine.lamina("images", "rm", name)
    assert machine.lamina("images", "ls", "-q").stdout == ""
    said = machine.lamina("tasks", "exec", machine.id, "echo", "alive").stdout
    assert said == "alive\n"
    machine.lamina("run", "--rm", name, f"{machine.id}-2", code=3)
    machine.lamina("tasks", "rm", "-f", machine.id, code=128 + signal.SIGKILL)
    machine.lamina("containers", "rm", machine.id)
    machine.lamina("snapshots", "cleanup")
    assert machine.lamina("snapshots", "ls").stdout.splitlines()[1:] == []
    assert machine.lamina("fsck").stdout == ""
