"""The gates of one worker with their kernel objects, each made when it is needed first."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from lamina.errors import FailedPrecondition
from lamina.lazy.gates import Gate
from lamina.lazy.gates import fanotify as fanotify_gate
from lamina.lazy.gates import fuse as fuse_gate
from lamina.lazy.gates.fanotify import FanotifyGate
from lamina.lazy.gates.fuse import FuseGate
from lamina.lazy.keeping import Keeper
from lamina.lazy.served import GateName
from lamina.lazy.slots import new_memory
from lamina.linux import fanotify, fuse, mountapi
from lamina.linux.mountinfo import mounts_at_or_below

GROUP = "fanotify"
GROUP_MEMORY = "fanotify-memory"
DEVICE = "fuse"
DEVICE_MEMORY = "fuse-memory"
POINT = "fuse"
"""Directory that the FUSE filesystem is mounted on."""


class GateObjects:
    """Makes, finds and serves the gates. Safe to use from any thread.

    Args:
        keeper: has what earlier workers made.
        directory: that the FUSE filesystem is mounted in.
    """

    def __init__(self, keeper: Keeper, directory: Path) -> None:
        self._keeper = keeper
        self._point = directory / POINT
        self._lock = threading.Lock()
        self._started = False
        self._gates: dict[GateName, Gate] = {}
        self.inherited_group = GROUP in keeper.kept and GROUP_MEMORY in keeper.kept
        # At once, before this process has descriptors that come and go: `FanotifyGate._reserve`.
        if self.inherited_group:
            self._gates["fanotify"] = self._fanotify()
        if DEVICE in keeper.kept and DEVICE_MEMORY in keeper.kept:
            self._gates["fuse"] = self._fuse()

    def get(self, name: GateName) -> Gate:
        """Return a gate that serves, or will when all are started.

        Raises:
            OSError: the kernel does not have it.
            FailedPrecondition: something else is mounted where the FUSE filesystem is to be.
        """
        with self._lock:
            if name not in self._gates:
                gate = self._fanotify() if name == "fanotify" else self._fuse()
                if self._started:
                    gate.start()
                self._gates[name] = gate
            return self._gates[name]

    def start(self) -> None:
        """Begin to serve; what earlier workers left is answered with the layers known by now."""
        with self._lock:
            self._started = True
            for gate in self._gates.values():
                gate.start()

    @property
    def is_needed(self) -> bool:
        """Whether readers depend on this process."""
        with self._lock:
            gates = list(self._gates.values())
        return any(gate.is_needed for gate in gates)

    def let_go(self) -> bool:
        """Unmount what is mounted; False when somebody uses it."""
        try:
            mountapi.umount2(self._point)
        except FileNotFoundError:
            return True
        except OSError:
            return not self._is_mounted()
        return True

    def _fanotify(self) -> FanotifyGate:
        kept = self._keeper.kept
        if GROUP not in kept:
            self._keeper.keep(GROUP, fanotify.new_group())
        if GROUP_MEMORY not in kept:
            size, count = fanotify_gate.SLOT_SIZE, fanotify_gate.SLOT_COUNT
            self._keeper.keep(GROUP_MEMORY, new_memory("lamina-fanotify", size, count))
        return FanotifyGate(kept[GROUP], kept[GROUP_MEMORY])

    def _fuse(self) -> FuseGate:
        kept = self._keeper.kept
        if DEVICE not in kept:
            self._unmount_dead()
            self._keeper.keep(DEVICE, fuse.open_device())
        if DEVICE_MEMORY not in kept:
            size, count = fuse_gate.SLOT_SIZE, fuse_gate.SLOT_COUNT
            self._keeper.keep(DEVICE_MEMORY, new_memory("lamina-fuse", size, count))
        if not self._is_mounted():
            self._point.mkdir(mode=0o700, exist_ok=True)
            fuse.mount(kept[DEVICE], self._point, "lamina-lazy")
        return FuseGate(kept[DEVICE], kept[DEVICE_MEMORY], self._point)

    def _is_mounted(self) -> bool:
        top = os.path.realpath(self._point.parent)
        found = mounts_at_or_below(Path(top, POINT))
        if found and found[-1].type != "fuse":
            raise FailedPrecondition("mount the lazy worker's filesystem", self._point,
                                     hint="unmount what is mounted there")  # fmt: skip
        return bool(found)

    def _unmount_dead(self) -> None:
        """Take off a mount whose processes all ended; its users get errors for ever."""
        if self._is_mounted():
            mountapi.umount2(self._point, mountapi.MNT_DETACH)
