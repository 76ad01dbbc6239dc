"""The contract, one function per check; each gets a fresh snapshotter and a scratch directory."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from lamina.core.labels import GC_ROOT, GID_MAPPING, UID_MAPPING
from lamina.core.snapshot import Info, Kind, Snapshotter
from lamina.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)
from lamina.mount import temp_mount
from tests.contract.layers import (
    Layer,
    apply,
    check_layers,
    chmod,
    chown,
    commit_layer,
    link,
    make_dir,
    remove,
    rename,
    symlink,
    tree,
    write,
)

Check = Callable[[Snapshotter, Path], None]

LABELS = {GC_ROOT: "2026-01-01T00:00:00Z"}


def basic(sn: Snapshotter, work: Path) -> None:
    """The life of two layers and a View, from preparing to removal."""
    first: Layer = [write("foo", "foo\n", 0o777), make_dir("a"), write("a/a.txt", "a\n")]
    second: Layer = [write("bar", "bar\n"), remove("a"), make_dir("a"), make_dir("a/b")]
    flat = work / "flat"
    flat.mkdir()

    mounts = sn.prepare("preparing", labels=LABELS)
    assert mounts
    with temp_mount(mounts, dir=work) as root:
        apply(first, root)
    sn.commit("committed", "preparing", labels=LABELS)
    apply(first, flat)
    found = sn.stat("committed")
    assert (found.parent, found.kind) == ("", Kind.COMMITTED)
    with pytest.raises(NotFound):
        sn.stat("preparing")

    with temp_mount(sn.prepare("next", "committed", labels=LABELS), dir=work) as root:
        assert tree(root) == tree(flat)
        apply(second, root)
    apply(second, flat)
    active = sn.stat("next")
    assert (active.parent, active.kind) == ("committed", Kind.ACTIVE)
    sn.commit("next-committed", "next", labels=LABELS)
    top = sn.stat("next-committed")
    assert (top.parent, top.kind) == ("committed", Kind.COMMITTED)
    assert list(sn.walk()) == [found, top]

    with temp_mount(sn.view("view", "next-committed", labels=LABELS), dir=work) as root:
        assert tree(root) == tree(flat)
    sn.remove("view")
    with pytest.raises(FailedPrecondition, match="remove"):
        sn.remove("committed")
    sn.remove("next-committed")
    sn.remove("committed")
    assert list(sn.walk()) == []


def stat_active(sn: Snapshotter, work: Path) -> None:
    """A fresh snapshot is Active, and writing to it does not change that."""
    with temp_mount(sn.prepare("active", labels=LABELS), dir=work) as root:
        (root / "foo").write_text("foo")
    info = sn.stat("active")
    assert (info.name, info.kind, info.parent) == ("active", Kind.ACTIVE, "")


def stat_committed(sn: Snapshotter, work: Path) -> None:
    """A committed snapshot goes by its new name."""
    commit_layer(sn, work, [write("foo", "foo")], "committed")
    info = sn.stat("committed")
    assert (info.name, info.kind, info.parent) == ("committed", Kind.COMMITTED, "")


def transitivity(sn: Snapshotter, work: Path) -> None:
    """Parents lead down to the base."""
    commit_layer(sn, work, [write("foo", "foo\n")], "a")
    commit_layer(sn, work, [write("bar", "bar\n")], "b", "a")
    assert sn.stat("b").parent == "a"
    assert sn.stat(sn.stat("b").parent).parent == ""


def prepare_and_view_twice(sn: Snapshotter, work: Path) -> None:
    """A key is taken by a snapshot of any kind."""
    sn.prepare("key")
    for create in (sn.view, sn.prepare):
        with pytest.raises(AlreadyExists):
            create("key")
    sn.view("view")
    for create in (sn.view, sn.prepare):
        with pytest.raises(AlreadyExists):
            create("view")
    commit_layer(sn, work, [], "name")
    with pytest.raises(AlreadyExists):
        sn.prepare("name")


def update(sn: Snapshotter, work: Path) -> None:
    """Labels change by field path on snapshots of every kind; nothing else ever does."""
    before = datetime.now(UTC)
    commit_layer(sn, work, [write("foo", "foo")], "c1")
    commit_layer(sn, work, [write("foo", "bar")], "c2", "c1")
    sn.prepare("a1", "c2")
    sn.prepare("a2")
    sn.view("v1", "c2")
    sn.view("v2")
    for key in ("c1", "c2", "a1", "a2", "v1", "v2"):
        _update(sn, key, before)


def _update(sn: Snapshotter, key: str, before: datetime) -> None:
    info = sn.stat(key)
    shown = dict(info.labels)
    assert before - timedelta(seconds=1) <= info.created == info.updated <= datetime.now(UTC)

    labels = {"l1": "v1", "l2": "v2", "l3": "v3"}
    changed = sn.update(info._replace(labels=labels, parent="doesnotexist"))
    assert changed == info._replace(labels={**labels, **shown}, updated=changed.updated)
    assert changed.updated > info.updated
    assert sn.stat(key) == changed

    some = changed._replace(labels={"l1": "updated", "l4": "ignored"})
    changed = sn.update(some, "labels.l1", "labels.l2")
    assert changed.labels == {"l1": "updated", "l3": "v3", **shown}

    changed = sn.update(changed._replace(labels={"l4": "v4"}), "labels")
    assert changed.labels == {"l4": "v4", **shown}

    with pytest.raises(InvalidArgument, match='cannot update "parent" field'):
        sn.update(changed._replace(labels={"l1": "x"}), "labels.l1", "parent")
    assert sn.stat(key) == changed


def remove_and_reuse(sn: Snapshotter, work: Path) -> None:
    """A removed snapshot's key is free for one of any kind."""
    commit_layer(sn, work, [write("foo", "foo")], "committed")
    for create in (sn.prepare, sn.view, sn.prepare):
        create("key", "committed")
        sn.remove("key")
    with pytest.raises(NotFound):
        sn.remove("key")
    sn.remove("committed")
    commit_layer(sn, work, [], "committed")


def walk(sn: Snapshotter, work: Path) -> None:
    """Filters choose by kind, name, parent and labels."""
    commit_layer(sn, work, [], "c1")
    commit_layer(sn, work, [], "c2", "c1")
    sn.prepare("a1", "c1", labels={"l1": "v1", "containerd.io/x": "y"})
    sn.prepare("a2", "c2", labels={"l1": "v2"})
    sn.view("v1", "c1", labels={"l2": "v1"})
    sn.view("v2")
    cases = {
        ("kind==active",): "a1 a2",
        ("kind==view",): "v1 v2",
        ("kind==committed",): "c1 c2",
        ("name==a1", "name==c2"): "a1 c2",
        ("parent==c1",): "a1 c2 v1",
        ('parent!=""',): "a1 a2 c2 v1",
        ('parent==""',): "c1 v2",
        ("labels.l1",): "a1 a2",
        ("labels.l1==v1",): "a1",
        ('labels."containerd.io/x"==y',): "a1",
        ("kind==active,parent==c2",): "a2",
        ("labels.l2!=v1,parent==c1",): "a1 c2",
        ("name~=^[av]1$",): "a1 v1",
        (): "a1 a2 c1 c2 v1 v2",
        ("kind==none", ""): "a1 a2 c1 c2 v1 v2",
    }
    for filters, names in cases.items():
        assert " ".join(info.name for info in sn.walk(filters)) == names, filters
    with pytest.raises(InvalidArgument):
        list(sn.walk(["kind=="]))


def layer_file_update(sn: Snapshotter, work: Path) -> None:
    """A change of the same size and a change of mode are seen, on both sides of a full second."""
    layers: list[Layer] = [[make_dir("etc"), write("etc/f", "n0000\n")]]
    for number in range(1, 6):
        edits: Layer = [write("etc/f", f"n000{number}\n"), chmod("etc/f", 0o600 + number)]
        layers.append([_just_after_a_second, *edits] if number % 2 else edits)
    check_layers(sn, work, *layers)


def _just_after_a_second(root: Path) -> None:
    time.sleep(1.001 - time.time() % 1)


def remove_directory_in_lower_layer(sn: Snapshotter, work: Path) -> None:
    """A directory made anew hides what its namesake below has."""
    check_layers(
        sn,
        work,
        [make_dir("lib"), write("lib/hidden", "content")],
        [remove("lib"), make_dir("lib"), write("lib/not-hidden", "content")],
        [write("lib/newfile", "content")],
    )


def ownership(sn: Snapshotter, work: Path) -> None:
    """A change of owner deep in the tree is kept."""
    check_layers(
        sn,
        work,
        [make_dir("opt"), make_dir("opt/a"), make_dir("opt/a/b"), write("opt/a/b/file", "hello")],
        [chown("opt", 1, 1), chown("opt/a", 1, 1), chown("opt/a/b", 2, 2),
         chown("opt/a/b/file", 3, 4)],
    )  # fmt: skip


def directory_permission_on_commit(sn: Snapshotter, work: Path) -> None:
    """Directories keep owner and mode through changes, deletion and re-creation."""
    names = [f"dir{number}" for number in range(1, 8)]
    check_layers(
        sn,
        work,
        [*(make_dir(n, 0o700) for n in names), *(chown(n, 1, 2) for n in names)],
        [chown("dir1", 1, 1), chown("dir2", 2, 2), remove("dir3"), remove("dir4"),
         make_dir("dir4", 0o755), chmod("dir5", 0o750), remove("dir6"), make_dir("dir6"),
         chown("dir6", 5, 5)],
        [remove("dir1"), make_dir("dir1", 0o777), chown("dir2", 3, 3), make_dir("dir3", 0o1777),
         write("dir4/file", "x"), chmod("dir7", 0o2755)],
    )  # fmt: skip


def remove_intermediate_snapshot(sn: Snapshotter, work: Path) -> None:
    """What others stand on cannot be removed; from the top down, everything can."""
    commit_layer(sn, work, [write("base", "x")], "base")
    commit_layer(sn, work, [write("middle", "x")], "middle", "base")
    sn.prepare("top", "middle")
    sn.view("view", "middle")
    for key in ("base", "middle"):
        with pytest.raises(FailedPrecondition, match="remove"):
            sn.remove(key)
    for key in ("top", "view", "middle", "base"):
        sn.remove(key)
    assert list(sn.walk()) == []


def deleted_files_in_child(sn: Snapshotter, work: Path) -> None:
    """What a layer deletes stays deleted in those above."""
    check_layers(sn, work, [write("foo", "x"), write("bar", "y")], [remove("foo")], [])


def move_file_from_lower_layer(sn: Snapshotter, work: Path) -> None:
    """Files move by copy and removal, and by hard link and removal."""
    check_layers(
        sn,
        work,
        [make_dir("dir1"), write("dir1/f1", "f1"), make_dir("dir2"), write("dir2/f2", "f2"),
         symlink("dir1/f1", "link")],
        [write("dir1/f11", "f1"), remove("dir1/f1"), make_dir("dir3"), link("dir2/f2", "dir3/f2"),
         remove("dir2/f2")],
    )  # fmt: skip


def view_is_read_only(sn: Snapshotter, work: Path) -> None:
    """Nothing can be written through the mounts of a View."""
    commit_layer(sn, work, [write("foo", "x")], "one")
    commit_layer(sn, work, [write("bar", "x")], "two", "one")
    for parent in ("", "one", "two"):
        mounts = sn.view(f"view-{parent}", parent)
        with (
            temp_mount(mounts, dir=work) as root,
            pytest.raises(OSError, match="Read-only file system"),
        ):
            (root / "new").write_text("x")


def stat_in_walk(sn: Snapshotter, work: Path) -> None:
    """Everything may be called while a walk is open."""
    commit_layer(sn, work, [write("foo", "x")], "base")
    sn.prepare("active", "base")
    seen = []
    for info in sn.walk():
        assert sn.stat(info.name) == info
        seen.append(info.name)
        sn.view(f"0-of-{info.name}", "base")
    assert seen == ["active", "base"]


def close_twice(sn: Snapshotter, work: Path) -> None:
    """Closing a closed snapshotter does nothing."""
    sn.prepare("a")
    sn.commit("b", "a")
    sn.remove("b")
    sn.close()
    sn.close()


def root_permission(sn: Snapshotter, work: Path) -> None:
    """The root of a new snapshot is open to everybody, whatever the snapshotter's own directory."""
    with temp_mount(sn.prepare("a"), dir=work) as root:
        assert root.stat().st_mode & 0o7777 == 0o755


def file_renames(sn: Snapshotter, work: Path) -> None:
    """Files move over one another across layers."""
    check_layers(
        sn,
        work,
        [make_dir("d"), write("d/a", "a"), write("d/b", "b"), write("c", "c")],
        [rename("d/a", "d/b"), rename("c", "d/c")],
        [rename("d/b", "b"), write("d/b", "new")],
    )


def directory_renames(sn: Snapshotter, work: Path) -> None:
    """Directories of lower layers move (overlayfs leaves that to its users: EXDEV)."""
    check_layers(
        sn,
        work,
        [make_dir("dir1"), make_dir("somefiles"), write("somefiles/f1", "was here first")],
        [rename("dir1", "dir2"), rename("somefiles", "dir3")],
        [rename("dir3", "dir4"), remove("dir2")],
    )


def many_layers(sn: Snapshotter, work: Path) -> None:
    """128 layers on one another; each is compared before and after, and all at the end."""
    flat = work / "flat"
    flat.mkdir()
    parent = ""
    for number in range(1, 129):
        layer: Layer = [
            write("bottom", f"{number}"),
            write(f"file-{number}", "x"),
            *([remove(f"file-{number - 2}")] if number > 2 else []),
        ]
        key = f"key-{number}"
        with temp_mount(sn.prepare(key, parent), dir=work) as root:
            assert tree(root) == tree(flat), f"below layer {number}"
            apply(layer, root)
            apply(layer, flat)
            assert tree(root) == tree(flat), f"with layer {number}"
        parent = f"layer-{number}"
        sn.commit(parent, key)
    with temp_mount(sn.view("view", parent), dir=work) as root:
        assert tree(root) == tree(flat)


def errors(sn: Snapshotter, work: Path) -> None:
    """Which class of error each misuse gets, and which of two comes first."""
    commit_layer(sn, work, [], "base")
    sn.prepare("active")
    sn.view("view", "base")
    for call in (sn.stat, sn.usage, sn.mounts, sn.remove):
        with pytest.raises(NotFound):
            call("missing")
    with pytest.raises(NotFound):
        sn.update(Info("missing"))
    for create in (sn.prepare, sn.view):
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
        sn.commit("base", "missing")
    with pytest.raises(NotFound):
        sn.commit("new", "missing")
    for key in ("view", "base"):
        with pytest.raises(FailedPrecondition):
            sn.commit("new", key)
    with pytest.raises(FailedPrecondition):
        sn.mounts("base")


def usage(sn: Snapshotter, work: Path) -> None:
    """An Active snapshot is measured, a Committed one has been; a View costs nothing."""
    with temp_mount(sn.prepare("active"), dir=work) as root:
        before = sn.usage("active")
        (root / "file").write_bytes(b"x" * (1 << 20))
        grown = sn.usage("active")
        assert grown.inodes == before.inodes + 1
        assert grown.size >= before.size + (1 << 20)
    sn.commit("committed", "active")
    assert sn.usage("committed") == grown
    sn.view("view", "committed")
    assert (sn.usage("view").inodes, sn.usage("view").size) == (0, 0)


def labels(sn: Snapshotter, work: Path) -> None:
    """Labels are what the last call gave: nothing is inherited, nothing empty is kept."""
    sn.prepare("active", labels={"a": "1", "empty": ""})
    shown = sn.stat("active").labels
    assert shown["a"] == "1"
    assert "empty" not in shown
    created = sn.stat("active").created
    sn.commit("committed", "active", labels={"b": "2"})
    found = sn.stat("committed")
    assert "a" not in found.labels
    assert found.labels["b"] == "2"
    assert found.created == found.updated > created
    sn.prepare("child", "committed")
    assert not {"a", "b"} & sn.stat("child").labels.keys()


def odd_keys(sn: Snapshotter, work: Path) -> None:
    """Keys are opaque and come back in the order of their bytes."""
    keys = ["../../etc", "/", "a b", "k8s.io/1/extract-1 sha256:0", "n\0ul", "\ue000", "\U0001f600"]
    for key in reversed(keys):
        sn.prepare(key)
    assert [info.name for info in sn.walk()] == keys == sorted(keys, key=str.encode)
    with pytest.raises(InvalidArgument):
        sn.prepare("lone \ud800 surrogate")
    for key in keys:
        sn.remove(key)


def remapped_ids(sn: Snapshotter, work: Path) -> None:
    """With mapping labels a mount shows the owners that a user namespace has on the host."""
    mapped = {UID_MAPPING: "0:100000:65536", GID_MAPPING: "0:200000:65536"}
    commit_layer(sn, work, [write("file", "one"), chown("file", 1, 2)], "base")
    commit_layer(sn, work, [write("more", "two"), chown("more", 3, 4)], "top", "base")
    below = {"file": (100001, 200002)}
    expected = {"": {}, "base": below, "top": {**below, "more": (100003, 200004)}}
    for parent, owners in expected.items():
        with temp_mount(sn.view(f"view {parent}", parent, labels=mapped), dir=work) as root:
            assert _owners(root) == {".": (100000, 200000), **owners}
        mounts = sn.prepare(f"active {parent}", parent, labels=mapped)
        for _ in range(2):  # mounted anew, everything is as it was
            with temp_mount(mounts, dir=work) as root:
                subprocess.run(
                    ["touch", "new"], cwd=root, user=100000, group=200000, extra_groups=[],
                    check=True,
                )  # fmt: skip
                made = dict.fromkeys((".", "new"), (100000, 200000))
                assert _owners(root) == made | owners
    with temp_mount(sn.view("plain", "top"), dir=work) as root:
        assert _owners(root) == {".": (0, 0), "file": (1, 2), "more": (3, 4)}


def _owners(root: Path) -> dict[str, tuple[int, int]]:
    found = {name: os.lstat(root / name) for name in (".", *os.listdir(root))}
    return {name: (status.st_uid, status.st_gid) for name, status in found.items()}


def cleanup(sn: Snapshotter, work: Path) -> None:
    """Cleaning up takes nothing that is in use, at any time and again."""
    sn.cleanup()
    commit_layer(sn, work, [write("foo", "x")], "base")
    sn.prepare("active", "base")
    sn.prepare("gone")
    sn.remove("gone")
    sn.cleanup()
    sn.cleanup()
    with temp_mount(sn.mounts("active"), dir=work) as root:
        assert (root / "foo").read_text() == "x"


CHECKS: tuple[Check, ...] = (
    basic,
    stat_active,
    stat_committed,
    transitivity,
    prepare_and_view_twice,
    update,
    remove_and_reuse,
    walk,
    layer_file_update,
    remove_directory_in_lower_layer,
    ownership,
    directory_permission_on_commit,
    remove_intermediate_snapshot,
    deleted_files_in_child,
    move_file_from_lower_layer,
    view_is_read_only,
    stat_in_walk,
    close_twice,
    root_permission,
    file_renames,
    directory_renames,
    many_layers,
    errors,
    usage,
    labels,
    odd_keys,
    remapped_ids,
    cleanup,
)
