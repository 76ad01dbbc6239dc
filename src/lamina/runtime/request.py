"""What it takes to run a container, as one value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

from lamina.core.process import ImageProcess
from lamina.core.snapshot import EMPTY_LABELS
from lamina.runtime.spec import Spec, SpecOptions


class RunRequest(NamedTuple):
    """A container to be made and started.

    Its root file system is a new snapshot of `parent` in `snapshotter`, or the directory `rootfs`,
    or (with `spec`) what that specification says.

    Attributes:
        id: its name.
        image: reference of the image, to be recorded.
        process: what the image says of its process.
        snapshotter: name of the snapshotter.
        parent: chain id of the image; "" for an empty root.
        snapshot_labels: labels of the new snapshot.
        rootfs: a directory to use instead of a snapshot; it is not copied.
        spec: a whole specification of the user's own; `options` do not count then.
        options: the user's wishes.
        labels: the user's labels of the container.
        runtime: path of the OCI runtime.
        cgroup: path of the container's cgroup; "" for one of its own.
        throw_away: remove everything once it has ended.
        detach: return when it is started; standard streams are /dev/null, or `output`.
        output: file to which a detached container's output is appended.
        null_io: standard streams are /dev/null.
        pid_file: file that gets the process id once the container is started.
        no_pivot: have the runtime use MS_MOVE instead of pivot_root, for a root on a ramdisk.
        forward_signals: pass on signals; for the main thread of a command.
        watch: given the mounted root file system, what is entered before anything reads it, and
            left before it is unmounted. Not for detached containers.
        stdout: descriptor that is the container's standard output; None for this process's own.
    """

    id: str
    runtime: str
    image: str = ""
    process: ImageProcess | None = None
    snapshotter: str = ""
    parent: str = ""
    snapshot_labels: Mapping[str, str] = EMPTY_LABELS
    rootfs: Path | None = None
    spec: Spec | None = None
    options: SpecOptions = SpecOptions()
    labels: Mapping[str, str] = EMPTY_LABELS
    cgroup: str = ""
    throw_away: bool = False
    detach: bool = False
    output: Path | None = None
    null_io: bool = False
    pid_file: Path | None = None
    no_pivot: bool = False
    forward_signals: bool = False
    watch: Callable[[Path], AbstractContextManager[object]] | None = None
    stdout: int | None = None

    @property
    def has_snapshot(self) -> bool:
        """Whether a snapshot has to be made for it."""
        return self.rootfs is None and self.spec is None
