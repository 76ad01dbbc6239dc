"""Layers as functions that edit a directory, applied to snapshots and to a flat directory alike."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

from lamina.core.snapshot import Snapshotter
from lamina.mount import temp_mount

Edit = Callable[[Path], object]
Layer = Sequence[Edit]


def make_dir(name: str, mode: int = 0o755) -> Edit:
    """Make a directory with exactly that mode."""

    def edit(root: Path) -> None:
        (root / name).mkdir()
        (root / name).chmod(mode)

    return edit


def write(name: str, content: str, mode: int = 0o644) -> Edit:
    """Write a file, new or not, and set its mode."""

    def edit(root: Path) -> None:
        (root / name).write_text(content)
        (root / name).chmod(mode)

    return edit


def remove(name: str) -> Edit:
    """Remove a file, or a directory with all that is below it."""

    def edit(root: Path) -> None:
        path = root / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()

    return edit


def link(old: str, new: str) -> Edit:
    """Give a file another name."""
    return lambda root: os.link(root / old, root / new)


def symlink(target: str, name: str) -> Edit:
    """Make a symbolic link."""
    return lambda root: (root / name).symlink_to(target)


def rename(old: str, new: str) -> Edit:
    """Rename, over what is there if need be."""
    return lambda root: (root / old).rename(root / new)


def chown(name: str, uid: int, gid: int) -> Edit:
    """Change the owner, of a link itself too."""
    return lambda root: os.chown(root / name, uid, gid, follow_symlinks=False)


def chmod(name: str, mode: int) -> Edit:
    """Change the mode."""
    return lambda root: (root / name).chmod(mode)


def apply(layer: Layer, root: Path) -> None:
    """Make all edits, in order."""
    for edit in layer:
        edit(root)


def tree(root: Path) -> dict[str, tuple[object, ...]]:
    """Describe all that is below a directory: type, mode, owner, and content or target."""
    found: dict[str, tuple[object, ...]] = {}
    for directory, names, files in os.walk(root):
        for name in (*names, *files):
            path = Path(directory, name)
            status = path.lstat()
            content: object = None
            if stat.S_ISREG(status.st_mode):
                content = path.read_bytes()
            elif stat.S_ISLNK(status.st_mode):
                content = str(path.readlink())
            found[str(path.relative_to(root))] = (
                status.st_mode, status.st_uid, status.st_gid, content,
            )  # fmt: skip
    return found


def commit_layer(
    snapshotter: Snapshotter, work: Path, layer: Layer, name: str, parent: str = ""
) -> None:
    """Prepare on `parent`, mount, edit, unmount and commit as `name`."""
    key = f"{name}-preparing"
    with temp_mount(snapshotter.prepare(key, parent), dir=work) as root:
        apply(layer, root)
    snapshotter.commit(name, key)


def check_layers(snapshotter: Snapshotter, work: Path, *layers: Layer) -> str:
    """Commit the layers on top of one another, each seen through a View equal to a flat directory.

    Returns:
        The name of the uppermost.
    """
    flat = work / "flat"
    flat.mkdir()
    parent = ""
    for number, layer in enumerate(layers):
        name = f"layer-{number}"
        commit_layer(snapshotter, work, layer, name, parent)
        apply(layer, flat)
        with temp_mount(snapshotter.view(f"{name}-view", name), dir=work) as root:
            assert tree(root) == tree(flat), f"after layer {number}"
        snapshotter.remove(f"{name}-view")
        parent = name
    return parent
