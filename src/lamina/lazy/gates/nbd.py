"""The gate `nbd`: cache files as network block devices, `/dev/nbdN`; for images of filesystems.

Reads of what is not local wait for the filler. A device has a name, made of its root's and its
layer's, by which later processes find it: what a mount reads from goes on, even after all processes
were killed. It ends with its last user: holder, standby and worker have it open, too.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
from pathlib import Path

from lamina.lazy.gates import GatedFile
from lamina.lazy.gates.nbd_device import SLOT_COUNT, SLOT_SIZE, TIMEOUTS, NbdDevice
from lamina.lazy.keeping import Keeper
from lamina.lazy.slots import new_memory
from lamina.linux import nbd

ID = "nbd.id"
"""File with the root's part of the names: a root that is made anew must not find older devices."""

_ID_BYTES = 8


class NbdGate:
    """Serves devices, each through a connection of its own.

    Args:
        keeper: has what earlier workers made.
        directory: the worker's, for `ID`.
    """

    def __init__(self, keeper: Keeper, directory: Path) -> None:
        self._keeper = keeper
        self._directory = directory
        self._inode = directory.stat().st_ino
        self._name = f"lamina-{_id(directory / ID)}-{self._inode:x}"
        self._lock = threading.Lock()
        self._served: dict[int, tuple[_Link, NbdDevice]] = {}

    def add(self, file: GatedFile) -> Path:
        """Serve the device, whose size is the filler's in whole sectors, and return its path.

        Raises:
            OSError: EPERM; ENOENT: the kernel has no network block devices; ENODEV: /dev is not the
                kernel's own.
        """
        with self._lock:
            found = self._served.get(file.number)
            if found is not None and found[1].is_over:
                self._remove(file.number)
                found = None
            if found is None:
                found = self._served[file.number] = self._open(file)
            link, _ = found
            return nbd.path_of(link.index)

    def remove(self, number: int) -> None:
        """Disconnect the device; what still reads it gets errors."""
        with self._lock:
            self._remove(number)

    @property
    def is_needed(self) -> bool:
        """Whether a device is connected.

        When the root is gone, devices end with what has mounted them.
        """
        with self._lock:
            served = list(self._served.values())
        if self._is_gone():
            for link, _ in served:
                link.let_go()
        return not all(device.is_over for _, device in served)

    def start(self) -> None:
        """Do nothing: each device is served as soon as its layer is known."""

    def _is_gone(self) -> bool:
        try:
            return self._directory.stat().st_ino != self._inode
        except FileNotFoundError:
            return True

    def _open(self, file: GatedFile) -> tuple[_Link, NbdDevice]:
        link = self._link(file.number)
        link.size = -(-file.filler.size // nbd.SECTOR) * nbd.SECTOR
        if not link.adopt():
            link.make()
        device = NbdDevice(file, link)
        device.start()
        if link.is_held or not nbd.has_size(link.index):
            link.hold()
        else:
            device.later(link.hold)  # the kernel may look for partitions in what is not local
        return link, device

    def _remove(self, number: int) -> None:
        found = self._served.pop(number, None)
        if found is None:  # its layer could not be opened
            link = self._link(number)
            link.disconnect()
        else:
            link, device = found
            device.close()
        link.drop()

    def _link(self, number: int) -> _Link:
        return _Link(self._keeper, f"nbd-{number}", f"{self._name}-{number}")


class _Link:
    """A device, and what is kept of it: this end of the connection, its memory, the device itself.

    Args:
        keeper: keeps it.
        kept: begin of its names there.
        name: of the device.

    Attributes:
        index: N of /dev/nbdN; -1 as long as there is none.
        size: of the device in bytes.
    """

    def __init__(self, keeper: Keeper, kept: str, name: str) -> None:
        self._keeper = keeper
        self._socket, self._memory, self._device = kept, f"{kept}-memory", f"{kept}-device"
        self._name = name
        self._lock = threading.Lock()
        self._ended = False
        self.size = 0
        found = nbd.find(name)
        self.index = -1 if found is None else found

    @property
    def connection(self) -> int:
        return self._keeper.kept[self._socket]

    @property
    def memory(self) -> int:
        return self._keeper.kept[self._memory]

    @property
    def is_held(self) -> bool:
        """Whether the device is open, so that it does not end with its last mount."""
        return self._device in self._keeper.kept

    def adopt(self) -> bool:
        """Take over the device of an earlier process; False if there is none."""
        if self.index < 0:
            return False
        if {self._socket, self._memory} <= self._keeper.kept.keys():
            return True
        self._make_memory()
        return self.reconnect()

    def make(self) -> None:
        """Connect a new device, of no size yet: it is not to be mounted before all is kept."""
        self._drop(self._device)
        self._make_memory()
        with self._make_connection() as theirs:
            self.index = nbd.connect(theirs.fileno(), 0, name=self._name, timeouts=TIMEOUTS)
        nbd.set_queue(self.index, "scheduler", "none")  # sorting is for disks

    def hold(self) -> None:
        """Have the device kept open, and end when nothing has; give it its size."""
        fd = None if self.is_held else nbd.open_device(self.index)
        with self._lock:
            if fd is not None and self._ended:
                os.close(fd)
                return
            if fd is not None:
                self._keeper.keep(self._device, fd)
        nbd.reconfigure(self.index, name=self._name, size=self.size, disconnect_on_close=True)

    def reconnect(self) -> bool:
        with self._make_connection() as theirs:
            try:
                nbd.reconfigure(self.index, name=self._name, socket=theirs.fileno())
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                return False
        return True

    def disconnect(self) -> None:
        # Not by its number alone: that may be somebody else's by now.
        if self.index >= 0 and nbd.find(self._name) == self.index:
            nbd.disconnect(self.index)

    def let_go(self) -> None:
        """Have the device end when nothing else has it open."""
        with self._lock:
            self._ended = True
            self._drop(self._device)

    def drop(self) -> None:
        """Have nothing kept any more."""
        self.let_go()
        self._drop(self._socket)
        self._drop(self._memory)

    def _make_memory(self) -> None:
        self._drop(self._memory)
        memory = new_memory("lamina-nbd", SLOT_SIZE, SLOT_COUNT)
        self._keeper.keep(self._memory, memory)

    def _make_connection(self) -> socket.socket:
        """Have this end of a new connection kept; return the kernel's."""
        self._drop(self._socket)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._keeper.keep(self._socket, ours.detach())
        return theirs

    def _drop(self, name: str) -> None:
        if name in self._keeper.kept:
            self._keeper.drop(name)


def _id(path: Path) -> str:
    """Return the text of a file that is made where there is none."""
    try:
        return path.read_text()
    except FileNotFoundError:
        new = path.with_name(f".{path.name}.{os.getpid()}")
        new.write_text(os.urandom(_ID_BYTES).hex())
        new.replace(path)
        return path.read_text()
