"""User-mode Linux: another kernel, with device-mapper, as a process of this machine.

It has one processor. A disk is a file of the host and keeps what the guest has written, also when
the machine is stopped in the middle: that is a power cut, for everything the guest had not synced.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.vm import machine
from tests.vm.machine import LIMIT_SECONDS, MEMORY_MIB
from tests.vm.xstate import preloading


class Machine(machine.Machine):
    """A boot of User-mode Linux."""

    program = "linux.uml"

    def __init__(
        self,
        directory: Path,
        command: Sequence[str | Path],
        *,
        disks: Sequence[Path] = (),
        files: Mapping[str, str] | None = None,
        environ: Mapping[str, str] | None = None,
        cwd: Path = Path("/"),
        limit_seconds: float = LIMIT_SECONDS,
    ) -> None:
        """Start it; see the base.

        Args:
            directory: as for the base, and so are the others.
            command: what to run.
            disks: files that the guest has as /dev/ubda, /dev/ubdb and so on; at most eight.
            files: of `shared`.
            environ: variables of the command.
            cwd: its directory.
            limit_seconds: its time.
        """
        self._disks = disks
        super().__init__(
            directory, command, files=files, environ=environ, cwd=cwd, limit_seconds=limit_seconds
        )

    def _arguments(self, directory: Path) -> list[str]:
        return [
            f"mem={MEMORY_MIB}M",
            *("root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro"),
            *("con=null", "con0=fd:0,fd:1", "quiet", "selinux=0", "noreboot", "panic=-1"),
            f"uml_dir={directory}",
            f"init={directory / 'init'}",
            f"lamina_shared={directory / 'shared'}",
            *(f"ubd{number}d={disk}" for number, disk in enumerate(self._disks)),
        ]

    def _environ(self, directory: Path) -> dict[str, str]:
        return {"HOME": str(directory), "TMPDIR": _memory_directory(), **preloading()}


def _memory_directory() -> str:
    """Return where the guest's memory is kept, as a deleted file: in memory where it fits."""
    shm = "/dev/shm"
    try:
        free = shutil.disk_usage(shm).free
    except FileNotFoundError:
        free = 0
    return shm if free > MEMORY_MIB << 20 else os.environ.get("TMPDIR", "/tmp")
