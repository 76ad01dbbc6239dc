"""Containers of one store: made, run, listed, removed.

A container is a record, a snapshot, and a bundle directory. They are made in this order and
removed in the opposite one, under the lock of the bundle; a process that dies in between leaves a
record, by which `remove` (and, for throw-away containers, the next `run` or listing) finds the
rest. The root file system is mounted in a namespace of its own and so needs no removal.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from lamina.core.driver import Ability
from lamina.core.labels import GID_MAPPING, OVERLAY_VOLATILE, UID_MAPPING
from lamina.core.mount import Mount
from lamina.core.snapshot import Snapshotter
from lamina.errors import AlreadyExists, FailedPrecondition, LaminaError, NotFound
from lamina.meta.containers import Container, ContainerStore
from lamina.runtime import cgroup
from lamina.runtime.bundle import Bundle, Busy
from lamina.runtime.oci_runtime import OciRuntime
from lamina.runtime.request import RunRequest
from lamina.runtime.start import Start

log = logging.getLogger(__name__)

STOP_SIGNAL_LABEL = "io.containerd.image.config.stop-signal"
_ENDING_SECONDS = 10.0
"""Long enough for a supervisor to clear up after a container that has ended."""


class Containers:
    """The containers of one store.

    Args:
        records: their table.
        directory: where the bundles are.
        snapshotter: returns the snapshotter of a name.
    """

    def __init__(
        self, records: ContainerStore, directory: Path, snapshotter: Callable[[str], Snapshotter]
    ) -> None:
        self.records = records
        self.directory = directory
        self._snapshotter = snapshotter

    def bundle(self, id: str) -> Bundle:
        """Return the bundle of a container, whether it exists or not."""
        return Bundle(self.directory, id)

    def runtime(self, container: Container) -> OciRuntime:
        """Return the runtime that runs a container."""
        bundle = self.bundle(container.id)
        return OciRuntime(container.runtime, bundle.state_root, bundle.log)

    def run(self, request: RunRequest) -> int:
        """Make a container and start it.

        Returns:
            its exit code (128 + N when signal N killed it); 0 at once for a detached one.

        Raises:
            AlreadyExists: the id is taken.
            NotFound: the image's snapshot is gone, or the image has no such user.
            StartFailed: the runtime could not start it. Nothing is left of it then.
        """
        bundle = self.bundle(request.id)
        self.sweep()
        try:
            with bundle.locked() as lock:
                return self._run_locked(request, bundle, lock)
        except Busy as error:
            raise _taken(request.id) from error

    def list(self) -> Iterator[Container]:
        """Yield every container, without those that a killed `run --rm` left behind."""
        self.sweep()
        return self.records.list()

    def remove(self, id: str) -> None:
        """Remove a container that does not run.

        Raises:
            NotFound: there is none.
            FailedPrecondition: it runs.
        """
        container = self.records.get(id)
        bundle = self.bundle(id)
        wait = _ENDING_SECONDS if bundle.read_exit() else 0.0
        try:
            with bundle.locked(wait_seconds=wait):
                self._refuse_running(container)
                self._dispose(container, bundle)
        except Busy as error:
            raise _running(id) from error

    def sweep(self) -> None:
        """Remove the throw-away containers that have been left behind."""
        for container in self.records.throw_aways():
            bundle = self.bundle(container.id)
            try:
                with bundle.locked():
                    if not self._alive(container):
                        self._dispose(container, bundle)
            except Busy:
                continue
            except (LaminaError, OSError) as error:
                log.warning(
                    "cannot remove a container that was left behind: %s",
                    error,
                    extra={"container": container.id},
                )

    def _run_locked(self, request: RunRequest, bundle: Bundle, lock: int) -> int:
        container = Container(
            id=request.id,
            image=request.image,
            runtime=request.runtime,
            snapshotter=request.snapshotter if request.has_snapshot else "",
            snapshot_key=request.id if request.has_snapshot else "",
            throw_away=request.throw_away,
            labels=_labels(request),
        )
        try:
            self.records.create(container)
        except AlreadyExists:
            raise _taken(request.id) from None
        made = False
        try:
            bundle.forget_task()
            mounts: list[Mount] = []
            if request.has_snapshot:
                snapshotter = self._snapshotter(request.snapshotter)
                labels = _snapshot_labels(request, snapshotter)
                mounts = snapshotter.prepare(request.id, request.parent, labels=labels)
                made = True
            group = request.cgroup or cgroup.default_path(self.directory, request.id)
            code = Start(request, bundle, mounts, lock, group).run()
        except BaseException:
            self._undo(container, bundle, snapshot=made)
            raise
        if request.throw_away:
            self._dispose(container, bundle)
        elif not request.detach:
            bundle.forget_task()
        return code

    def _undo(self, container: Container, bundle: Bundle, *, snapshot: bool) -> None:
        """Dispose of what a failed start has made, without hiding why it failed."""
        try:
            self._dispose(container, bundle, snapshot=snapshot)
        except (LaminaError, OSError) as error:
            log.warning(
                "cannot clear up after a failed start: %s", error, extra={"container": container.id}
            )

    def _dispose(self, container: Container, bundle: Bundle, *, snapshot: bool = True) -> None:
        """Remove everything of a container that does not run; may be repeated."""
        self.runtime(container).delete(container.id)
        if bundle.config.exists():
            cgroup.remove(bundle.read_spec().get("linux", {}).get("cgroupsPath", ""))
        _unmount(bundle.rootfs)
        if snapshot and container.snapshot_key:
            try:
                self._snapshotter(container.snapshotter).remove(container.snapshot_key)
            except NotFound:
                pass
        bundle.remove()
        self.records.delete(container.id)

    def _alive(self, container: Container) -> bool:
        state = self.runtime(container).state(container.id)
        return state is not None and state.status != "stopped"

    def _refuse_running(self, container: Container) -> None:
        if self._alive(container):
            raise _running(container.id)


def _labels(request: RunRequest) -> dict[str, str]:
    labels = dict(request.process.labels) if request.process else {}
    if request.process:
        labels[STOP_SIGNAL_LABEL] = request.process.stop_signal or "SIGTERM"
    return {**labels, **request.labels}


def _snapshot_labels(request: RunRequest, snapshotter: Snapshotter) -> dict[str, str]:
    labels = dict(request.snapshot_labels)
    if request.throw_away:
        labels[OVERLAY_VOLATILE] = "true"
    if not request.options.uid_maps:
        return labels
    # Only an engine tells; a snapshotter behind a socket is asked by its daemon.
    abilities: frozenset[Ability] = getattr(snapshotter, "abilities", frozenset())
    if Ability.REMAP_IDS not in abilities:
        raise FailedPrecondition(
            f"map ids in snapshotter {request.snapshotter}",
            request.id,
            hint="it has no idmapped mounts here: use overlayfs on Linux 5.19 or newer",
        )
    for label, ranges in (
        (UID_MAPPING, request.options.uid_maps),
        (GID_MAPPING, request.options.gid_maps),
    ):
        labels[label] = ",".join(f"{ids.container}:{ids.host}:{ids.size}" for ids in ranges)
    return labels


def _unmount(rootfs: Path) -> None:
    """Unmount what a killed supervisor left of a container that shares mounts with the host."""
    if not os.path.ismount(rootfs):
        return
    from lamina.mount import unmount_recursive  # hardly ever needed

    unmount_recursive(rootfs)


def _taken(id: str) -> AlreadyExists:
    return AlreadyExists(
        "container", id, hint=f"choose another id, or remove it: lamina containers rm {id}"
    )


def _running(id: str) -> FailedPrecondition:
    return FailedPrecondition(
        "remove container", id, hint=f"it is running; stop it first: lamina tasks rm -f {id}"
    )
