"""The gates of one worker with their kernel objects, each made when it is needed first."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import NamedTuple

from lamina.errors import FailedPrecondition
from lamina.lazy.gates import Gate
from lamina.lazy.gates import fanotify as fanotify_gate
from lamina.lazy.gates import fuse as fuse_gate
from lamina.lazy.gates import writable as writable_gate
from lamina.lazy.gates.fanotify import FanotifyGate
from lamina.lazy.gates.fuse import FuseGate
from lamina.lazy.gates.writable import WritableGate
from lamina.lazy.keeping import Keeper
from lamina.lazy.served import GateName
from lamina.lazy.slots import new_memory
from lamina.linux import fanotify, fuse, mountapi
from lamina.linux.mountinfo import mounts_at_or_below

GROUP = "fanotify"
GROUP_MEMORY = "fanotify-memory"
_END_SECONDS = 5.0


class _Filesystem(NamedTuple):
    """A FUSE filesystem of a gate.

    Attributes:
        device: name under which the connection is kept, and of the directory it is mounted on.
        memory: name under which its slots are kept.
        slot_size: bytes.
        slot_count: how many.
        writable: whether its files can be written to.
    """

    device: str
    memory: str
    slot_size: int
    slot_count: int
    writable: bool


_FILESYSTEMS: dict[GateName, _Filesystem] = {
    "fuse": _Filesystem(
        "fuse", "fuse-memory", fuse_gate.SLOT_SIZE, fuse_gate.SLOT_COUNT, writable=False
    ),
    "writable": _Filesystem(
        "writable", "writable-memory", writable_gate.SLOT_SIZE, writable_gate.SLOT_COUNT,
        writable=True,
    ),
}  # fmt: skip


class GateObjects:
    """Makes, finds and serves the gates. Safe to use from any thread.

    Args:
        keeper: has what earlier workers made.
        directory: that the FUSE filesystems are mounted in; the worker's.
    """

    def __init__(self, keeper: Keeper, directory: Path) -> None:
        self._keeper = keeper
        self._directory = directory
        self._lock = threading.Lock()
        self._started = False
        self._gates: dict[GateName, Gate] = {}
        self.inherited_group = GROUP in keeper.kept and GROUP_MEMORY in keeper.kept
        # At once, before this process has descriptors that come and go: `FanotifyGate._reserve`.
        if self.inherited_group:
            self._gates["fanotify"] = self._fanotify()
        for name, kind in _FILESYSTEMS.items():
            if kind.device in keeper.kept and kind.memory in keeper.kept:
                self._gates[name] = self._fuse(name)

    def get(self, name: GateName) -> Gate:
        """Return a gate that serves, or will when all are started.

        Raises:
            OSError: the kernel does not have it.
            FailedPrecondition: something else is mounted where the FUSE filesystem is to be.
        """
        with self._lock:
            if name not in self._gates:
                gate = self._make(name)
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
        with self._lock:
            free = [name for name, kind in _FILESYSTEMS.items() if self._unmount(kind)]
            if len(free) == len(_FILESYSTEMS):
                return True
            # The process goes on: what is not mounted any more has to be made anew.
            for name in free:
                self._forget(name)
        return False

    def _make(self, name: GateName) -> Gate:
        match name:
            case "fanotify":
                return self._fanotify()
            case "fuse" | "writable":
                return self._fuse(name)
            case "nbd":
                from lamina.lazy.gates.nbd import NbdGate  # most workers do without

                return NbdGate(self._keeper, self._directory)

    def _fanotify(self) -> FanotifyGate:
        kept = self._keeper.kept
        if GROUP not in kept:
            self._keeper.keep(GROUP, fanotify.new_group())
        if GROUP_MEMORY not in kept:
            size, count = fanotify_gate.SLOT_SIZE, fanotify_gate.SLOT_COUNT
            self._keeper.keep(GROUP_MEMORY, new_memory("lamina-fanotify", size, count))
        return FanotifyGate(kept[GROUP], kept[GROUP_MEMORY])

    def _fuse(self, name: GateName) -> FuseGate | WritableGate:
        kind = _FILESYSTEMS[name]
        point = self._directory / kind.device
        kept = self._keeper.kept
        if kind.device not in kept:
            self._unmount_dead(point)
            if kind.memory in kept:  # requests have other numbers in another connection
                self._keeper.drop(kind.memory)
            self._keeper.keep(kind.device, fuse.open_device())
        if kind.memory not in kept:
            memory = new_memory(f"lamina-{kind.device}", kind.slot_size, kind.slot_count)
            self._keeper.keep(kind.memory, memory)
        if not self._is_mounted(point):
            point.mkdir(mode=0o700, exist_ok=True)
            fuse.mount(kept[kind.device], point, "lamina-lazy", writable=kind.writable)
        gate = WritableGate if kind.writable else FuseGate
        return gate(kept[kind.device], kept[kind.memory], point)

    def _forget(self, name: GateName) -> None:
        gate, kind = self._gates.get(name), _FILESYSTEMS[name]
        if isinstance(gate, FuseGate | WritableGate) and gate.wait_for_end(_END_SECONDS):
            del self._gates[name]
            self._keeper.drop(kind.device)
            self._keeper.drop(kind.memory)

    def _unmount(self, kind: _Filesystem) -> bool:
        """Unmount a filesystem, if it is mounted; False when somebody uses it."""
        point = self._directory / kind.device
        try:
            mountapi.umount2(point)
        except FileNotFoundError:
            return True
        except OSError:
            return not self._is_mounted(point)
        return True

    def _is_mounted(self, point: Path) -> bool:
        top = os.path.realpath(point.parent)
        found = mounts_at_or_below(Path(top, point.name))
        if found and found[-1].type != "fuse":
            raise FailedPrecondition("mount the lazy worker's filesystem", point,
                                     hint="unmount what is mounted there")  # fmt: skip
        return bool(found)

    def _unmount_dead(self, point: Path) -> None:
        """Take off a mount whose processes all ended; its users get errors for ever."""
        if self._is_mounted(point):
            mountapi.umount2(point, mountapi.MNT_DETACH)
