"""Copies of live snapshots, for drivers that have `fork`; for others, that they refuse."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.core.labels import FORK_OF, FORKED_FROM, GC_ROOT, SNAPSHOT_REF
from lamina.core.snapshot import Kind, Snapshotter
from lamina.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    NotImplementedHere,
)
from lamina.mount import temp_mount
from lamina.snapshotters.engine import Engine
from lamina.testing.checks.layers import (
    Layer,
    apply,
    chown,
    commit_layer,
    link,
    make_dir,
    remove,
    symlink,
    tree,
    write,
)

BASE: Layer = [
    make_dir("d"), write("d/kept", "k"), write("d/gone", "g"), write("changed", "old"),
    make_dir("replaced"), write("replaced/below", "b"),
]  # fmt: skip
CHANGES: Layer = [
    remove("d/gone"), write("changed", "new"), write("first", "one"), link("first", "d/second"),
    symlink("nowhere", "link"), remove("replaced"), make_dir("replaced", 0o2750),
    write("replaced/above", "a", 0o4755), chown("link", 5, 6), chown("d/kept", 7, 8),
]  # fmt: skip


class ForkChecks:
    """A fork has what its source had, and is on its own from then on."""

    @pytest.fixture
    def forking(self, engine: Engine, snapshotter: Snapshotter) -> Iterator[Snapshotter]:
        """The snapshotter, if its driver can fork."""
        if not engine.forks:
            pytest.skip("the driver has no `fork`")
        yield snapshotter

    def test_fork_content(self, forking: Snapshotter, work: Path) -> None:
        """All kinds of changes are there: deletions, hard links, owners, devices, attributes."""
        commit_layer(forking, work, BASE, "base")
        with temp_mount(forking.prepare("source", "base"), dir=work) as root:
            apply(CHANGES, root)
            _add_special_files(root)
            expected = tree(root)
        with temp_mount(forking.fork("source", "fork"), dir=work) as root:
            assert tree(root) == expected
            _check_special_files(root)
            assert (root / "first").stat().st_ino == (root / "d/second").stat().st_ino
            (root / "first").write_text("both")
            assert (root / "d/second").read_text() == "both"
        with temp_mount(forking.mounts("source"), dir=work) as root:
            assert tree(root) == expected

    def test_fork_of_mounted(self, forking: Snapshotter, work: Path) -> None:
        """What was written and closed before the call is there, though the source is in use."""
        commit_layer(forking, work, BASE, "base")
        with temp_mount(forking.prepare("source", "base"), dir=work) as source:
            apply(CHANGES, source)
            with (source / "open").open("w") as opened:
                (source / "large").write_bytes(os.urandom(1 << 20))
                expected = tree(source)
                mounts = forking.fork("source", "fork")
                opened.write("after")
            (source / "first").write_text("changed in the source")
            (source / "late").touch()
            with temp_mount(mounts, dir=work) as fork:
                assert tree(fork) == expected
                (fork / "changed").write_text("changed in the fork")
                (fork / "d/kept").unlink()
                assert not (fork / "late").exists()
            assert (source / "changed").read_text() == "new"
            assert (source / "d/kept").exists()
            assert (source / "open").read_text() == "after"

    def test_fork_is_independent(self, forking: Snapshotter, work: Path) -> None:
        """Source and forks are committed and removed in any order, and keep their content."""
        commit_layer(forking, work, BASE, "base")
        _prepare(forking, work, "source", "one")
        forking.fork("source", "second")
        forking.fork("source", "third")
        _write(forking, work, "source", "two")
        forking.commit("committed source", "source")
        _write(forking, work, "second", "three")
        forking.commit("committed second", "second")
        forking.remove("committed source")
        forking.cleanup()
        assert _read(forking, work, "third") == "one"
        with temp_mount(forking.view("view", "committed second"), dir=work) as root:
            assert (root / "changed").read_text() == "three"
            assert (root / "d/gone").read_text() == "g"
        forking.remove("view")
        forking.remove("committed second")
        forking.commit("committed third", "third")
        forking.cleanup()
        with temp_mount(forking.view("view", "committed third"), dir=work) as root:
            assert (root / "changed").read_text() == "one"

    def test_fork_of_fork(self, forking: Snapshotter, work: Path) -> None:
        """Forks are forked, with their sources removed as well; without a parent, too."""
        commit_layer(forking, work, BASE, "base")
        for parent in ("", "base"):
            _prepare(forking, work, "0", "zero", parent)
            for number in range(3):
                forking.fork(f"{number}", f"{number + 1}")
                forking.remove(f"{number}")
                assert _read(forking, work, f"{number + 1}") == "zero"
            _write(forking, work, "3", "three")
            assert _read(forking, work, "3") == "three"
            assert forking.stat("3").parent == parent
            forking.remove("3")

    def test_fork_records(self, forking: Snapshotter, work: Path) -> None:
        """A fork has its source's parent and labels, but for those about the source alone."""
        commit_layer(forking, work, BASE, "base")
        labels = {"a": "1", "b": "2", "c": "3", GC_ROOT: "x", SNAPSHOT_REF: "sha256:1"}
        forking.prepare("source", "base", labels=labels)
        assert forking.fork("source", "fork", labels={"b": "4", "c": ""}) == forking.mounts("fork")
        info = forking.stat("fork")
        assert (info.name, info.kind, info.parent) == ("fork", Kind.ACTIVE, "base")
        assert info.labels.items() >= {"a": "1", "b": "4", FORKED_FROM: "source"}.items()
        assert not info.labels.keys() & {"c", GC_ROOT, SNAPSHOT_REF}
        assert forking.stat("source").labels.items() >= labels.items()
        forking.remove("source")
        assert forking.usage("fork").size >= 0

    def test_fork_by_label(self, forking: Snapshotter, work: Path) -> None:
        """Prepare with a label forks, as it is asked for over containerd's protocol."""
        commit_layer(forking, work, BASE, "base")
        _prepare(forking, work, "source", "one")
        labels = {FORK_OF: "source", "a": "1"}
        mounts = forking.prepare("fork", "base", labels=labels)
        assert mounts == forking.mounts("fork")
        assert _read(forking, work, "fork") == "one"
        stored = forking.stat("fork").labels
        assert stored.items() >= {"a": "1", FORKED_FROM: "source"}.items()
        assert FORK_OF not in stored
        with pytest.raises(InvalidArgument, match="parent"):
            forking.prepare("other", labels=labels)
        with pytest.raises(NotFound):
            forking.prepare("other", "missing", labels=labels)
        with pytest.raises(InvalidArgument):
            forking.view("other", "base", labels=labels)

    def test_fork_by_a_containerds_label(self, forking: Snapshotter, work: Path) -> None:
        """A containerd passes the label with its client's key, and numbers the keys."""
        commit_layer(forking, work, BASE, "base")
        _prepare(forking, work, "ns/9/source", "gone", "base")
        _prepare(forking, work, "ns/10/source", "newest", "base")
        _prepare(forking, work, "other/11/source", "other", "base")
        forking.prepare("ns/12/fork", "base", labels={FORK_OF: "source"})
        assert _read(forking, work, "ns/12/fork") == "newest"
        assert forking.stat("ns/12/fork").labels[FORKED_FROM] == "ns/10/source"
        with pytest.raises(NotFound):
            forking.prepare("third/13/fork", "base", labels={FORK_OF: "source"})

    def test_fork_errors(self, forking: Snapshotter, work: Path) -> None:
        """Which class of error each misuse gets; none of them leaves anything."""
        commit_layer(forking, work, BASE, "base")
        forking.view("view", "base")
        forking.prepare("source", "base")
        before = list(forking.walk())
        with pytest.raises(NotFound):
            forking.fork("missing", "fork")
        for key in ("view", "base"):
            with pytest.raises(FailedPrecondition, match="prepare"):
                forking.fork(key, "fork")
        for taken in ("base", "source", "view"):
            with pytest.raises(AlreadyExists):
                forking.fork("source", taken)
        with pytest.raises(InvalidArgument):
            forking.fork("source", "")
        assert list(forking.walk()) == before

    def test_fork_undeclared(self, engine: Engine, snapshotter: Snapshotter) -> None:
        """A driver without `fork` refuses, by label as well, and nothing is made."""
        if engine.forks:
            pytest.skip("the driver has `fork`")
        snapshotter.prepare("source")
        with pytest.raises(NotImplementedHere):
            snapshotter.fork("source", "fork")
        with pytest.raises(NotImplementedHere):
            snapshotter.prepare("fork", labels={FORK_OF: "source"})
        assert [info.name for info in snapshotter.walk()] == ["source"]


def _prepare(
    snapshotter: Snapshotter, work: Path, key: str, text: str, parent: str = "base"
) -> None:
    snapshotter.prepare(key, parent)
    _write(snapshotter, work, key, text)


def _write(snapshotter: Snapshotter, work: Path, key: str, text: str) -> None:
    with temp_mount(snapshotter.mounts(key), dir=work) as root:
        (root / "changed").write_text(text)


def _read(snapshotter: Snapshotter, work: Path, key: str) -> str:
    with temp_mount(snapshotter.mounts(key), dir=work) as root:
        return (root / "changed").read_text()


def _add_special_files(root: Path) -> None:
    os.mkfifo(root / "fifo", 0o640)
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.setxattr(root / "changed", "trusted.test", b"value")
    with (root / "sparse").open("wb") as file:
        file.truncate(4 << 20)
        file.seek(3 << 20)
        file.write(b"data")


def _check_special_files(root: Path) -> None:
    assert stat.S_ISFIFO((root / "fifo").stat().st_mode)
    assert (root / "null").stat().st_rdev == os.makedev(1, 3)
    assert os.getxattr(root / "changed", "trusted.test") == b"value"
    assert (root / "sparse").stat().st_blocks * 512 < 1 << 20
