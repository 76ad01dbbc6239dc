"""What layers contain: each is seen through mounts, and compared with a flat directory."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from lamina.core.snapshot import Snapshotter
from lamina.mount import temp_mount
from lamina.testing.checks.layers import (
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


class ContentChecks:
    """Changes of a layer reach those above it, and nothing else does."""

    def test_layer_file_update(self, snapshotter: Snapshotter, work: Path) -> None:
        """Changes of mode, or within the size, are seen, on both sides of a full second."""
        layers: list[Layer] = [[make_dir("etc"), write("etc/f", "n0000\n")]]
        for number in range(1, 4):
            edits: Layer = [write("etc/f", f"n000{number}\n"), chmod("etc/f", 0o600 + number)]
            layers.append([_just_after_a_second, *edits] if number == 1 else edits)
        check_layers(snapshotter, work, *layers)

    def test_remove_directory_in_lower_layer(self, snapshotter: Snapshotter, work: Path) -> None:
        """A directory made anew hides what its namesake below has."""
        check_layers(
            snapshotter,
            work,
            [make_dir("lib"), write("lib/hidden", "content")],
            [remove("lib"), make_dir("lib"), write("lib/not-hidden", "content")],
            [write("lib/newfile", "content")],
        )

    def test_ownership(self, snapshotter: Snapshotter, work: Path) -> None:
        """A change of owner deep in the tree is kept."""
        check_layers(
            snapshotter,
            work,
            [make_dir("opt"), make_dir("opt/a"), make_dir("opt/a/b"),
             write("opt/a/b/file", "hello")],
            [chown("opt", 1, 1), chown("opt/a", 1, 1), chown("opt/a/b", 2, 2),
             chown("opt/a/b/file", 3, 4)],
        )  # fmt: skip

    def test_directory_permission_on_commit(self, snapshotter: Snapshotter, work: Path) -> None:
        """Directories keep owner and mode through changes, deletion and re-creation."""
        names = [f"dir{number}" for number in range(1, 8)]
        check_layers(
            snapshotter,
            work,
            [*(make_dir(n, 0o700) for n in names), *(chown(n, 1, 2) for n in names)],
            [chown("dir1", 1, 1), chown("dir2", 2, 2), remove("dir3"), remove("dir4"),
             make_dir("dir4", 0o755), chmod("dir5", 0o750), remove("dir6"), make_dir("dir6"),
             chown("dir6", 5, 5)],
            [remove("dir1"), make_dir("dir1", 0o777), chown("dir2", 3, 3), make_dir("dir3", 0o1777),
             write("dir4/file", "x"), chmod("dir7", 0o2755)],
        )  # fmt: skip

    def test_deleted_files_in_child(self, snapshotter: Snapshotter, work: Path) -> None:
        """What a layer deletes stays deleted in those above."""
        check_layers(snapshotter, work, [write("foo", "x"), write("bar", "y")], [remove("foo")], [])

    def test_move_file_from_lower_layer(self, snapshotter: Snapshotter, work: Path) -> None:
        """Files move by copy and removal, and by hard link and removal."""
        check_layers(
            snapshotter,
            work,
            [make_dir("dir1"), write("dir1/f1", "f1"), make_dir("dir2"), write("dir2/f2", "f2"),
             symlink("dir1/f1", "link")],
            [write("dir1/f11", "f1"), remove("dir1/f1"), make_dir("dir3"),
             link("dir2/f2", "dir3/f2"), remove("dir2/f2")],
        )  # fmt: skip

    def test_view_is_read_only(self, snapshotter: Snapshotter, work: Path) -> None:
        """Nothing can be written through the mounts of a View."""
        commit_layer(snapshotter, work, [write("foo", "x")], "one")
        commit_layer(snapshotter, work, [write("bar", "x")], "two", "one")
        for parent in ("", "one", "two"):
            mounts = snapshotter.view(f"view-{parent}", parent)
            with (
                temp_mount(mounts, dir=work) as root,
                pytest.raises(OSError, match="Read-only file system"),
            ):
                (root / "new").write_text("x")

    def test_root_permission(self, snapshotter: Snapshotter, work: Path) -> None:
        """The root of a new snapshot is open to all, unlike the snapshotter's own directory."""
        with temp_mount(snapshotter.prepare("a"), dir=work) as root:
            assert root.stat().st_mode & 0o7777 == 0o755

    def test_file_renames(self, snapshotter: Snapshotter, work: Path) -> None:
        """Files move over one another across layers."""
        check_layers(
            snapshotter,
            work,
            [make_dir("d"), write("d/a", "a"), write("d/b", "b"), write("c", "c")],
            [rename("d/a", "d/b"), rename("c", "d/c")],
            [rename("d/b", "b"), write("d/b", "new")],
        )

    def test_directory_renames(self, snapshotter: Snapshotter, work: Path) -> None:
        """Directories of lower layers move (overlayfs leaves that to its users: EXDEV)."""
        check_layers(
            snapshotter,
            work,
            [make_dir("dir1"), make_dir("somefiles"), write("somefiles/f1", "was here first")],
            [rename("dir1", "dir2"), rename("somefiles", "dir3")],
            [rename("dir3", "dir4"), remove("dir2")],
        )

    def test_many_layers(self, snapshotter: Snapshotter, work: Path) -> None:
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
            with temp_mount(snapshotter.prepare(key, parent), dir=work) as root:
                assert tree(root) == tree(flat), f"below layer {number}"
                apply(layer, root)
                apply(layer, flat)
                assert tree(root) == tree(flat), f"with layer {number}"
            parent = f"layer-{number}"
            snapshotter.commit(parent, key)
        with temp_mount(snapshotter.view("view", parent), dir=work) as root:
            assert tree(root) == tree(flat)


def _just_after_a_second(root: Path) -> None:
    time.sleep(1.001 - time.time() % 1)
