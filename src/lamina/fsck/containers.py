"""Compares the records of containers with their bundles and their snapshots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lamina.core.problem import Problem, Repair
from lamina.errors import InvalidArgument, LaminaError, NotFound
from lamina.images.fsck import confirmed
from lamina.mount import unmount_recursive
from lamina.runtime.bundle import Bundle

if TYPE_CHECKING:
    from lamina.meta.containers import Container
    from lamina.snapshotters.engine import Engine
    from lamina.store import Store

CONTAINERS = "containers"
"""The directory of bundles below the root."""


def check_containers(store: Store, engines: Mapping[str, Engine]) -> Iterator[Problem]:
    """Yield what is wrong with containers: record, bundle and snapshot belong together."""
    for container in confirmed(lambda: _unbundled(store)):
        yield _without_bundle(store, container, engines)
    for container in store.containers.list():
        # One that is just started or removed is locked, and has its record longer than the rest.
        idle = _is_idle(store.root / CONTAINERS, container.id)
        if idle and _lacks_snapshot(container, engines):
            what = f"its snapshot {container.snapshot_key} is gone"
            fix = f"lamina containers rm {container.id}"
            yield Problem(f"container {container.id}", what, fix)
    for bundle in confirmed(lambda: _unrecorded(store)):
        repair = Repair("removes it", partial(_remove_bundle, store, bundle))
        yield Problem(str(store.root / CONTAINERS / bundle), "no container has it", repair=repair)


def _unbundled(store: Store) -> list[Container]:
    directory = store.root / CONTAINERS
    return [c for c in store.containers.list() if not (directory / c.id).is_dir()]


def _without_bundle(store: Store, container: Container, engines: Mapping[str, Engine]) -> Problem:
    does, fix = "removes its record", ""
    if container.snapshot_key and not _lacks_snapshot(container, engines):
        does = f"removes its record and leaves its snapshot {container.snapshot_key}"
        verb = f"lamina snapshots --snapshotter {container.snapshotter}"
        fix = f"discard that if it is not wanted: {verb} rm {container.snapshot_key}"
    repair = Repair(does, lambda: _forget_container(store, container.id))
    return Problem(f"container {container.id}", "its bundle is gone", fix, repair)


def _forget_container(store: Store, id: str) -> None:
    if not (store.root / CONTAINERS / id).is_dir():
        store.containers.delete(id)


def _lacks_snapshot(container: Container, engines: Mapping[str, Engine]) -> bool:
    engine = engines.get(container.snapshotter)
    if engine is None or not container.snapshot_key:
        return False
    try:
        engine.stat(container.snapshot_key)
    except NotFound:
        return True
    except LaminaError:
        return False  # damaged, which its snapshotter tells
    return False


def _unrecorded(store: Store) -> list[str]:
    """Return the bundles of no container that nobody is at; `run` makes and locks them first."""
    directory = store.root / CONTAINERS
    if not directory.is_dir():
        return []
    known = {container.id for container in store.containers.list()}
    names = [path.name for path in directory.iterdir() if path.is_dir()]
    return [name for name in names if name not in known and _is_idle(directory, name)]


def _is_idle(directory: Path, name: str) -> bool:
    try:
        return Bundle(directory, name).is_idle()
    except InvalidArgument:  # no name of a container
        return False


def _remove_bundle(store: Store, name: str) -> None:
    bundle = Bundle(store.root / CONTAINERS, name)
    with bundle.locked():
        if store.containers.find(name) is None:
            unmount_recursive(bundle.rootfs)
            bundle.remove()
