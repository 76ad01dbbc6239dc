"""Finds mounts that have outlived what they show: the kernel's side of the comparison."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lamina.core.mount import split_options
from lamina.core.problem import Problem, Repair
from lamina.errors import InvalidArgument
from lamina.fsck.containers import CONTAINERS
from lamina.linux.mountinfo import MountInfo, read_mountinfo
from lamina.mount import unmount
from lamina.runtime.bundle import Bundle

if TYPE_CHECKING:
    from lamina.snapshotters.engine import Engine
    from lamina.store import Store

_GONE = "//deleted"
"""What mountinfo shows behind the directory of a bind mount that was removed."""


def check_mounts(store: Store, engines: Mapping[str, Engine]) -> Iterator[Problem]:
    """Yield the mounts that nobody is left for, as far as this mount namespace shows them."""
    root = str(store.root.resolve())
    for info in read_mountinfo():
        below = info.point.startswith(f"{root}/")
        if below and (id := _idle_container(store, info.point, root)):
            what = f"it is mounted for container {id}, which does not run"
            repair = Repair("unmounts it", partial(unmount, info.point))
            yield Problem(info.point, what, repair=repair)
        elif name := _from_gone_storage(info, engines):
            what = f"it is mounted from storage of {name} that is gone"
            if below:
                repair = Repair("unmounts it", partial(unmount, info.point))
                yield Problem(info.point, what, repair=repair)
            else:
                yield Problem(info.point, what, f"umount {info.point}")


def _idle_container(store: Store, point: str, root: str) -> str:
    """Return the id of the container whose root file system this is, if nobody is at it."""
    match = re.fullmatch(re.escape(f"{root}/{CONTAINERS}/") + "([^/]+)/rootfs", point)
    directory = store.root / CONTAINERS
    if match is None:
        return ""
    try:
        return match[1] if Bundle(directory, match[1]).is_idle() else ""
    except InvalidArgument:  # no name of a container
        return ""


def _from_gone_storage(info: MountInfo, engines: Mapping[str, Engine]) -> str:
    """Return the name of the snapshotter whose removed directories the mount shows."""
    if info.root.endswith(_GONE):
        path = info.root.removesuffix(_GONE)
        return next((n for n, e in engines.items() if f"/{e.root.name}/snapshots/" in path), "")
    if info.type != "overlay":
        return ""
    for name, engine in engines.items():
        top = f"{engine.root.resolve()}/snapshots/"
        if any(p.startswith(top) and not Path(p).exists() for p in _layers_of(info)):
            return name
    return ""


def _layers_of(info: MountInfo) -> Iterator[str]:
    for option in split_options(info.super_options):
        name, _, value = option.partition("=")
        if name == "upperdir" or name.rstrip("+") == "lowerdir":
            for path in re.split(r"(?<!\\):", value):
                yield re.sub(r"\\(.)", r"\1", path)
