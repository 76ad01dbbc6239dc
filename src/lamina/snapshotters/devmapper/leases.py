"""Which numbers of a pool's devices are whose, marked in the pool itself.

From FIRST_DEVICE_ID on, numbers are let in ranges of RANGE. The first number of a range is never a
snapshot's: the device with that number is the lease, one block that names the root whose range it
is. So several roots can share a pool, and a root can tell a device that it has made and forgotten,
as after a power loss, from another's: see `reconcile`.

A range is taken at random: roots that each believe to be in the pool that they have always known,
which was made anew meanwhile, are unlikely to meet.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import random
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from lamina.errors import ResourceExhausted
from lamina.linux.dm import SECTOR, node
from lamina.linux.dm.thin import MAX_DEVICE_ID
from lamina.snapshotters.devmapper.devices import FIRST_DEVICE_ID, RANGE, Devices
from lamina.snapshotters.devmapper.pool import Pool

log = logging.getLogger(__name__)

_SIZE = 4096
_MAGIC = b"lamina devmapper lease\n"


class Lease(NamedTuple):
    """What a lease says.

    Attributes:
        owner: the root's own name, made at random; "" in a device that is not, or not yet, a lease.
        root: the snapshotter's directory, to be shown.
    """

    owner: str = ""
    root: str = ""


class Leases:
    """The ranges of one root in one pool.

    Args:
        pool: where they are.
        devices: the root's rows, which know its ranges.
        root: the snapshotter's directory.
    """

    def __init__(self, pool: Pool, devices: Devices, root: Path) -> None:
        self._pool = pool
        self._devices = devices
        self._root = root.absolute()
        self._file = self._root / "devices.owner"

    def recognise(self) -> None:
        """See whether the pool is the one that has this root's ranges, after each activation.

        Rows that name another root's devices are forgotten: the pool was made anew meanwhile.
        """
        if self._devices.begun():
            self._tidy()
        identity = self._pool.identity()
        if self._devices.seen() == identity:
            return
        self._devices.skip_reserved()
        try:
            with self._locked():
                for start in self._devices.ranges():
                    self._look_at(start)
        except OSError as error:  # of a pool that has failed: everything else tells, too
            log.warning("cannot read the pool's leases: %s", error, extra={"pool": self._pool.name})
        else:
            self._devices.set_seen(identity)

    def claim(self) -> None:
        """Take a range for this root, unless it has one with numbers left.

        Raises:
            ResourceExhausted: all ranges are taken.
            OSError: the pool cannot be written to.
        """
        with self._locked():
            if self._devices.has_number():
                return
            starts = chain(self._devices.begun(), self._starts())  # before there is an owner
            owner = self._owner()
            found = any(self._take(start, owner) for start in starts)
        if not found and not self._devices.begin_again():
            what = f"take numbers for devices in pool {self._pool.name}: other roots have them all"
            raise ResourceExhausted(what, hint="`lamina fsck` in each root tells what is there")

    def is_ours(self, lease: Lease) -> bool:
        """Tell whether this root has made it."""
        return bool(lease.owner) and lease.owner == self._known_owner()

    def is_left_behind(self, lease: Lease) -> str:
        """Say why another root's lease is of no use to anybody; "" where it may be in use."""
        if lease.root == str(self._root):
            return f"it is of another root that was at {lease.root} before"
        if not Path(lease.root, "devices.sqlite").exists():
            return f"it is of the root {lease.root}, which is not there"
        return ""

    def read(self, start: int) -> Lease | None:
        """Return what the lease of a range says; None where there is no such device."""
        with self._locked():
            return self._read(start)

    def _tidy(self) -> None:
        """Hide the leases that a killed process was about to make."""
        with self._locked():
            for start in self._devices.begun():
                self._pool.deactivate(self._pool.private_name(start), start)

    def _look_at(self, start: int) -> None:
        """Correct what is known of a range."""
        lease = self._read(start)
        if lease is None:
            self._devices.begin_range(start)
        elif not self.is_ours(lease):
            self._devices.drop_range(start)

    def _take(self, start: int, owner: str) -> bool:
        """Make a range this root's, unless it is another's; a kill in between is made up for."""
        self._devices.begin_range(start)
        lease = Lease()
        try:
            self._pool.create_thin(start)
            blank = True
        except FileExistsError:
            content = self._content(start)
            lease, blank = parse(content), not any(content)
        if blank:  # also where somebody was killed here
            self._write(start, Lease(owner, str(self._root)))
        elif lease.owner != owner:
            self._devices.drop_range(start)
            return False
        self._devices.end_range(start)
        return True

    def _starts(self) -> list[int]:
        """Return all ranges but the root's, those first that may be: its rows may be lost.

        Where it has rows, but no range, are devices from before there were leases.
        """
        known = {*self._devices.ranges(), *(n - n % RANGE for n in self._devices.numbers())}
        starts = [n for n in range(FIRST_DEVICE_ID, MAX_DEVICE_ID, RANGE) if n not in known]
        random.shuffle(starts)
        if self._known_owner():
            from lamina.snapshotters.devmapper.census import count_devices  # hardly ever needed

            present = count_devices(self._pool)
            starts.sort(key=lambda start: start not in present)
        return starts

    def _read(self, start: int) -> Lease | None:
        try:
            return parse(self._content(start))
        except OSError as error:
            if error.errno != errno.ENODATA:
                raise
            return None

    def _content(self, start: int) -> bytes:
        with self._pool.active(start, _SIZE // SECTOR) as name:
            return node(name).read_bytes()

    def _write(self, start: int, lease: Lease) -> None:
        with self._pool.active(start, _SIZE // SECTOR) as name:
            fd = os.open(node(name), os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.pwrite(fd, build(lease), 0)
                os.fsync(fd)
            finally:
                os.close(fd)

    def _owner(self) -> str:
        owner = self._known_owner()
        if owner:
            return owner
        owner = secrets.token_hex(16)
        new = self._file.with_suffix(".new")
        with new.open("w") as file:
            file.write(owner)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._file)
        fd = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        return owner

    def _known_owner(self) -> str:
        try:
            return self._file.read_text()
        except FileNotFoundError:
            return ""

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Be the only one at the pool's leases, other roots included."""
        fd = os.open(node(self._pool.name), os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def build(lease: Lease) -> bytes:
    """Return the content of a lease's device."""
    return (_MAGIC + json.dumps(lease._asdict()).encode() + b"\n").ljust(_SIZE, b"\0")[:_SIZE]


def parse(content: bytes) -> Lease:
    """Return what a device says that may be a lease."""
    if not content.startswith(_MAGIC):
        return Lease()
    try:
        return Lease(**json.loads(content.split(b"\n")[1]))
    except (ValueError, TypeError):
        return Lease()
