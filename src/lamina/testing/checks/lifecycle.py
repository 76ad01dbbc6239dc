"""From preparing to removal: kinds, keys and names, parents, and the errors of each misuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from lamina.core.driver import Ability
from lamina.core.labels import GC_ROOT
from lamina.core.snapshot import Info, Kind, Snapshotter
from lamina.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    NotImplementedHere,
)
from lamina.mount import temp_mount
from lamina.testing.checks.layers import Layer, apply, commit_layer, make_dir, remove, tree, write
from lamina.testing.subject import require

LABELS = {GC_ROOT: "2026-01-01T00:00:00Z"}


class LifecycleChecks:
    """What a snapshot is, and what it becomes."""

    def test_basic(self, snapshotter: Snapshotter, work: Path) -> None:
        """The life of two layers and a View, from preparing to removal."""
        first: Layer = [write("foo", "foo\n", 0o777), make_dir("a"), write("a/a.txt", "a\n")]
        second: Layer = [write("bar", "bar\n"), remove("a"), make_dir("a"), make_dir("a/b")]
        flat = work / "flat"
        flat.mkdir()

        mounts = snapshotter.prepare("preparing", labels=LABELS)
        assert mounts
        with temp_mount(mounts, dir=work) as root:
            apply(first, root)
        snapshotter.commit("committed", "preparing", labels=LABELS)
        apply(first, flat)
        found = snapshotter.stat("committed")
        assert (found.parent, found.kind) == ("", Kind.COMMITTED)
        with pytest.raises(NotFound):
            snapshotter.stat("preparing")

        with temp_mount(snapshotter.prepare("next", "committed", labels=LABELS), dir=work) as root:
            assert tree(root) == tree(flat)
            apply(second, root)
        apply(second, flat)
        active = snapshotter.stat("next")
        assert (active.parent, active.kind) == ("committed", Kind.ACTIVE)
        snapshotter.commit("next-committed", "next", labels=LABELS)
        top = snapshotter.stat("next-committed")
        assert (top.parent, top.kind) == ("committed", Kind.COMMITTED)
        assert list(snapshotter.walk()) == [found, top]

        with temp_mount(
            snapshotter.view("view", "next-committed", labels=LABELS), dir=work
        ) as root:
            assert tree(root) == tree(flat)
        snapshotter.remove("view")
        with pytest.raises(FailedPrecondition, match="remove"):
            snapshotter.remove("committed")
        snapshotter.remove("next-committed")
        snapshotter.remove("committed")
        assert list(snapshotter.walk()) == []

    def test_stat_active(self, snapshotter: Snapshotter, work: Path) -> None:
        """A fresh snapshot is Active, and writing to it does not change that."""
        with temp_mount(snapshotter.prepare("active", labels=LABELS), dir=work) as root:
            (root / "foo").write_text("foo")
        info = snapshotter.stat("active")
        assert (info.name, info.kind, info.parent) == ("active", Kind.ACTIVE, "")

    def test_stat_committed(self, snapshotter: Snapshotter, work: Path) -> None:
        """A committed snapshot goes by its new name."""
        commit_layer(snapshotter, work, [write("foo", "foo")], "committed")
        info = snapshotter.stat("committed")
        assert (info.name, info.kind, info.parent) == ("committed", Kind.COMMITTED, "")

    def test_transitivity(self, snapshotter: Snapshotter, work: Path) -> None:
        """Parents lead down to the base."""
        commit_layer(snapshotter, work, [write("foo", "foo\n")], "a")
        commit_layer(snapshotter, work, [write("bar", "bar\n")], "b", "a")
        assert snapshotter.stat("b").parent == "a"
        assert snapshotter.stat(snapshotter.stat("b").parent).parent == ""

    def test_prepare_and_view_twice(self, snapshotter: Snapshotter, work: Path) -> None:
        """A key is taken by a snapshot of any kind."""
        snapshotter.prepare("key")
        for create in (snapshotter.view, snapshotter.prepare):
            with pytest.raises(AlreadyExists):
                create("key")
        snapshotter.view("view")
        for create in (snapshotter.view, snapshotter.prepare):
            with pytest.raises(AlreadyExists):
                create("view")
        commit_layer(snapshotter, work, [], "name")
        with pytest.raises(AlreadyExists):
            snapshotter.prepare("name")

    def test_remove_and_reuse(self, snapshotter: Snapshotter, work: Path) -> None:
        """A removed snapshot's key is free for one of any kind."""
        commit_layer(snapshotter, work, [write("foo", "foo")], "committed")
        for create in (snapshotter.prepare, snapshotter.view, snapshotter.prepare):
            create("key", "committed")
            snapshotter.remove("key")
        with pytest.raises(NotFound):
            snapshotter.remove("key")
        snapshotter.remove("committed")
        commit_layer(snapshotter, work, [], "committed")

    def test_remove_intermediate_snapshot(self, snapshotter: Snapshotter, work: Path) -> None:
        """What others stand on cannot be removed; from the top down, everything can."""
        commit_layer(snapshotter, work, [write("base", "x")], "base")
        commit_layer(snapshotter, work, [write("middle", "x")], "middle", "base")
        snapshotter.prepare("top", "middle")
        snapshotter.view("view", "middle")
        for key in ("base", "middle"):
            with pytest.raises(FailedPrecondition, match="remove"):
                snapshotter.remove(key)
        for key in ("top", "view", "middle", "base"):
            snapshotter.remove(key)
        assert list(snapshotter.walk()) == []

    def test_errors(self, snapshotter: Snapshotter, work: Path) -> None:
        """Which class of error each misuse gets, and which of two comes first."""
        commit_layer(snapshotter, work, [], "base")
        snapshotter.prepare("active")
        snapshotter.view("view", "base")
        for call in (snapshotter.stat, snapshotter.usage, snapshotter.mounts, snapshotter.remove):
            with pytest.raises(NotFound):
                call("missing")
        with pytest.raises(NotFound):
            snapshotter.update(Info("missing"))
        for create in (snapshotter.prepare, snapshotter.view):
            with pytest.raises(NotFound):
                create("new", "missing")
            with pytest.raises(NotFound):
                create("active", "missing")
            with pytest.raises(InvalidArgument):
                create("new", "active")
            with pytest.raises(InvalidArgument):
                create("")
            with pytest.raises(AlreadyExists):
                create("base", "base")
        with pytest.raises(AlreadyExists):
            snapshotter.commit("base", "missing")
        with pytest.raises(NotFound):
            snapshotter.commit("new", "missing")
        for key in ("view", "base"):
            with pytest.raises(FailedPrecondition):
                snapshotter.commit("new", key)
        with pytest.raises(FailedPrecondition):
            snapshotter.mounts("base")

    def test_rebase(
        self, snapshotter: Snapshotter, abilities: frozenset[Ability], work: Path
    ) -> None:
        """What was prepared without a parent gets one at commit, and shows it below itself."""
        require(Ability.REBASE, abilities)
        commit_layer(snapshotter, work, [make_dir("d"), write("d/below", "b")], "base")
        with temp_mount(snapshotter.prepare("active"), dir=work) as root:
            apply([make_dir("d"), write("d/above", "a")], root)
        snapshotter.commit("top", "active", parent="base")
        assert snapshotter.stat("top").parent == "base"
        with temp_mount(snapshotter.view("view", "top"), dir=work) as root:
            assert tree(root).keys() == {"d", "d/above", "d/below"}

    def test_rebase_undeclared(
        self, snapshotter: Snapshotter, abilities: frozenset[Ability], work: Path
    ) -> None:
        """Without the ability a new parent is refused, and nothing changes."""
        if Ability.REBASE in abilities:
            pytest.skip("the driver declares rebase")
        commit_layer(snapshotter, work, [], "base")
        snapshotter.prepare("active")
        with pytest.raises(NotImplementedHere):
            snapshotter.commit("top", "active", parent="base")
        assert snapshotter.stat("active").kind == Kind.ACTIVE

    def test_cleanup(self, snapshotter: Snapshotter, work: Path) -> None:
        """Cleaning up takes nothing that is in use, at any time and again."""
        snapshotter.cleanup()
        commit_layer(snapshotter, work, [write("foo", "x")], "base")
        snapshotter.prepare("active", "base")
        snapshotter.prepare("gone")
        snapshotter.remove("gone")
        snapshotter.cleanup()
        snapshotter.cleanup()
        with temp_mount(snapshotter.mounts("active"), dir=work) as root:
            assert (root / "foo").read_text() == "x"

    def test_close_twice(self, snapshotter: Snapshotter, work: Path) -> None:
        """Closing a closed snapshotter does nothing."""
        snapshotter.prepare("a")
        snapshotter.commit("b", "a")
        snapshotter.remove("b")
        snapshotter.close()
        snapshotter.close()
