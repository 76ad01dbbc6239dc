"""Brings a prepared container to life: mounts its root, writes its specification, runs it."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from lamina.core.mount import Mount
from lamina.errors import FailedPrecondition, InvalidArgument, LaminaError, NotFound
from lamina.mount import mount_all, unmount_all
from lamina.runtime.bundle import Bundle
from lamina.runtime.detach import start_detached
from lamina.runtime.oci_runtime import ENVIRONMENT, OciRuntime, StartFailed
from lamina.runtime.private_mounts import with_private_mounts
from lamina.runtime.request import RunRequest
from lamina.runtime.spec import Spec, build_spec
from lamina.runtime.supervise import run_foreground, signals_held
from lamina.runtime.user import account_files

log = logging.getLogger(__name__)


class Start(NamedTuple):
    """One start of one container.

    Attributes:
        request: what to run.
        bundle: a bundle without a task, locked.
        mounts: of the root file system; none where the request names a directory.
        lock: descriptor of the bundle's lock, which a detached container's supervisor inherits.
        cgroup: path of the cgroup, where the request names none.
    """

    request: RunRequest
    bundle: Bundle
    mounts: Sequence[Mount]
    lock: int
    cgroup: str

    def run(self) -> int:
        """Run the container to its end, or with `detach` until it is started.

        Returns:
            the exit code; 0 for a detached container.

        Raises:
            StartFailed: the runtime could not start it.
        """
        self.bundle.rootfs.mkdir(exist_ok=True)
        self._pid_file.unlink(missing_ok=True)
        with ExitStack() as stack:
            if self.request.forward_signals:
                stack.enter_context(signals_held())
            if self._reaches_host() or self._is_served():
                return self._mounted()
            return with_private_mounts(self._mounted)

    @property
    def _pid_file(self) -> Path:
        return self.request.pid_file or self.bundle.pid_file

    @property
    def _rootfs(self) -> Path:
        return self.request.rootfs or self.bundle.rootfs

    def _reaches_host(self) -> bool:
        """Whether mounts made in the container are to appear on the host.

        They do not from a private mount namespace; the root is mounted in the host's then, and
        unmounted by whoever supervises the container.
        """
        if self.request.spec is None:
            options = self.request.options
            shared = options.rootfs_propagation in {"shared", "rshared"}
            return shared or any(mount.reaches_host for mount in options.mounts)
        used = {o for m in self.request.spec.get("mounts", ()) for o in m.get("options", ())}
        return not used.isdisjoint({"shared", "rshared"})

    def _is_served(self) -> bool:
        """Whether a process serves the root file system.

        It would live in the private mount namespace, and keep both alive when all others are gone.
        """
        return any(mount.type.startswith(("fuse.", "fuse3.")) for mount in self.mounts)

    def _mounted(self) -> int:
        with ExitStack() as stack:
            mount_all(self.mounts, self.bundle.rootfs)
            stack.callback(self._unmount)
            if self.request.watch is not None:
                stack.enter_context(self.request.watch(self._rootfs))
            spec = self._spec()
            self.bundle.write_spec(spec)
            if not self.request.detach:
                return self._foreground(spec)
            start_detached(self.request, self.bundle, self._pid_file, lock=self.lock)
            # Its supervisor has the mounts now.
            stack.pop_all()
            return 0

    def _unmount(self) -> None:
        try:
            unmount_all(self.mounts, self.bundle.rootfs)
        except LaminaError as error:
            # A process that joined the container's namespaces may have outlived it.
            log.warning(
                "cannot unmount a root file system: %s", error, extra={"container": self.bundle.id}
            )

    def _spec(self) -> Spec:
        if self.request.spec is None:
            if self.request.options.uid_maps:
                self._open_to_mapped_root()
            rootfs = self._rootfs
            if not rootfs.is_dir():
                raise NotFound("root file system", rootfs, hint="name a directory")
            spec = build_spec(
                self.request.process,
                self.request.options,
                rootfs=str(rootfs),
                accounts=account_files(rootfs),
            )
        else:
            spec = self.request.spec
        return {**spec, "linux": {"cgroupsPath": self.cgroup, **spec.get("linux", {})}}

    def _open_to_mapped_root(self) -> None:
        """Let the container's root, a nobody on the host, reach the root file system."""
        self.bundle.path.chmod(0o711)
        for parent in self.bundle.path.parents:
            if not stat.S_IMODE(parent.stat().st_mode) & stat.S_IXOTH:
                raise FailedPrecondition(
                    "run with mapped ids: the container's root cannot pass",
                    parent,
                    hint=f"chmod o+x {parent}, or use another --root",
                )

    def _foreground(self, spec: Spec) -> int:
        if spec.get("process", {}).get("terminal") and not os.isatty(0):
            raise InvalidArgument(
                "run with a terminal", hint="-t needs one on standard input; leave it out"
            )
        runtime = OciRuntime(self.request.runtime, self.bundle.state_root, self.bundle.log)
        options: list[str | Path] = ["--bundle", self.bundle.path, "--pid-file", self._pid_file]
        if self.request.no_pivot:
            options.append("--no-pivot")
        code = run_foreground(
            runtime.command("run", *options, self.bundle.id),
            ENVIRONMENT,
            forward=self.request.forward_signals,
            null_io=self.request.null_io,
            stdout=self.request.stdout,
        )
        if not self._pid_file.exists():
            raise StartFailed(
                f"start container {self.bundle.id}",
                runtime.failure(),
                shown=not self.request.null_io,
            )
        return code
