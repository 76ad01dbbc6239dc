"""The gate `writable`: devices as files that are written to, in a FUSE filesystem of their own.

It has a connection of its own, so that files that are only read keep small slots and a thread that
never writes. A request that changes something is noted in its slot as done, by its number, before
it is answered: whoever finds it there answers it and does not do it again, as what it wrote may
have been written over since.
"""

from __future__ import annotations

import errno
import logging
import struct
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from lamina.errors import LaminaError
from lamina.lazy.gates import GatedFile
from lamina.lazy.gates.fuse_answers import MAX_READ, Answers, Terms
from lamina.lazy.gates.intake import Intake
from lamina.lazy.slots import Slots
from lamina.lazy.writable.device import WritableDevice
from lamina.linux import fuse
from lamina.linux.fallocate import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE
from lamina.linux.process import become_io_flusher

log = logging.getLogger(__name__)

MAX_WRITE = 256 << 10
"""Bytes of a write; the kernel cuts larger ones up."""
SLOT_SIZE = MAX_WRITE + 4096
SLOT_COUNT = 256
"""Their memory is taken when they are used, and few are at a time."""
MAX_BACKGROUND = 192
"""Requests of loop devices with direct I/O, at a time; fewer than slots, so that others pass."""
_NOTE = struct.Struct("=Qi4x")
"""At a slot's end: number of the last request that was done in it, and 0 or an errno."""
_DISK_THREADS = 8
"""For what waits for the disk; apart from those that wait for the network."""
_TOLD = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EINVAL, errno.EOPNOTSUPP})
"""What a writer is told as it is; all else is EIO."""
_ZEROING = frozenset(
    {FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE}
)


class WritableGate:
    """Serves one connection.

    Args:
        device: from `fuse.open_device`, held by others too; mounted at `point`.
        memory: of `SLOT_COUNT` slots of `SLOT_SIZE`, held by others too.
        point: where it is mounted.
    """

    def __init__(self, device: int, memory: int, point: Path) -> None:
        self._point = point
        self._slots = Slots(memory, SLOT_SIZE, room=_NOTE.size)
        self._files: dict[int, WritableDevice] = {}
        self._lock = threading.Lock()
        self._buffer = memoryview(bytearray(MAX_READ))
        self._left = list(self._slots.left())
        self._intake = Intake(device, self._slots, self._take, "writable", _be_spared)
        self._disk = ThreadPoolExecutor(
            _DISK_THREADS, thread_name_prefix="writable-disk", initializer=_be_spared
        )
        flags = fuse.ASYNC_READ | fuse.PARALLEL_DIROPS | fuse.BIG_WRITES | fuse.ASYNC_DIO
        opened = fuse.FOPEN_KEEP_CACHE | fuse.FOPEN_PARALLEL_DIRECT_WRITES
        terms = Terms(flags, MAX_BACKGROUND, MAX_WRITE, opened)
        self._answers = Answers(device, self._sizes, terms)

    def add(self, file: GatedFile) -> Path:
        """Show the device and return where.

        Raises:
            TypeError: it is none that can be written to.
        """
        device = file.filler
        if not isinstance(device, WritableDevice):
            raise TypeError(f"{file.path} is not a writable device")
        with self._lock:
            self._files[file.number] = device
        return self._point / str(file.number)

    def remove(self, number: int) -> None:
        """Show it no more; what still uses it gets errors."""
        with self._lock:
            self._files.pop(number, None)

    @property
    def is_needed(self) -> bool:
        """Whether a device is shown, and its filesystem still mounted somewhere."""
        with self._lock:
            return bool(self._files) and not self._intake.is_over

    def wait_for_end(self, seconds: float) -> bool:
        """Wait for the end of an unmounted filesystem; tell whether it is there."""
        return self._intake.wait_for_end(seconds)

    def start(self) -> None:
        """Answer the requests that were left, and serve those to come."""
        for index, slot in self._left:
            self._intake.later(self._handle, index, slot, None)
        self._intake.start()

    def _sizes(self) -> dict[int, int]:
        with self._lock:
            return {number: device.size for number, device in self._files.items()}

    def _take(self, index: int, slot: memoryview) -> None:
        self._handle(index, slot, self._buffer)

    def _handle(self, index: int, slot: memoryview, buffer: memoryview | None) -> None:
        """Answer a request; `buffer` is for reads that need not wait, else none is put off."""
        request = fuse.parse_request(slot)
        if request.opcode == fuse.READ:
            self._read(index, slot, request, buffer)
        elif request.opcode in {fuse.WRITE, fuse.FALLOCATE, fuse.FSYNC}:
            self._change(index, slot, request)
        else:
            self._answers.answer(slot, request)
            self._slots.clear(index)

    def _read(
        self, index: int, slot: memoryview, request: fuse.Request, buffer: memoryview | None
    ) -> None:
        _, offset, size, *_ = fuse.READ_IN.unpack_from(slot, fuse.IN_HEADER.size)
        device = self._files.get(request.node - 1)
        if device is None:
            self._answers.fail(request, errno.EIO)
            self._slots.clear(index)
            return
        start, stop = min(offset, device.size), min(offset + size, device.size)
        if buffer is not None and device.is_local(start, stop):
            self._fill(index, request, device, start, buffer[: stop - start])
        else:
            work = self._fill, index, request, device, start
            self._intake.later(*work, memoryview(bytearray(stop - start)))

    def _fill(
        self,
        index: int,
        request: fuse.Request,
        device: WritableDevice,
        start: int,
        buffer: memoryview,
    ) -> None:
        number = _tried(device, device.read_into, buffer, start)
        try:
            if number:
                self._answers.fail(request, number)
            else:
                self._answers.reply(request, buffer)
        finally:
            self._slots.clear(index)

    def _change(self, index: int, slot: memoryview, request: fuse.Request) -> None:
        unique, number = _NOTE.unpack_from(slot, len(slot) - _NOTE.size)
        device = self._files.get(request.node - 1)
        if unique == request.unique:
            self._finish(index, slot, request, number)
        elif device is None:
            self._finish(index, slot, request, errno.EIO)
        elif request.opcode == fuse.WRITE:
            self._write(index, slot, request, device)
        else:
            self._disk.submit(self._carry_out, index, slot, request, device)

    def _write(
        self, index: int, slot: memoryview, request: fuse.Request, device: WritableDevice
    ) -> None:
        _, offset, size, *_ = fuse.WRITE_IN.unpack_from(slot, fuse.IN_HEADER.size)
        if not device.can_write(offset, offset + size):
            self._intake.later(self._carry_out, index, slot, request, device)
        else:
            self._carry_out(index, slot, request, device)

    def _carry_out(
        self, index: int, slot: memoryview, request: fuse.Request, device: WritableDevice
    ) -> None:
        do = {fuse.WRITE: _write, fuse.FALLOCATE: _discard, fuse.FSYNC: _flush}[request.opcode]
        number = _tried(device, do, device, slot)
        _NOTE.pack_into(slot, len(slot) - _NOTE.size, request.unique, number)
        self._finish(index, slot, request, number)

    def _finish(self, index: int, slot: memoryview, request: fuse.Request, number: int) -> None:
        try:
            if number:
                self._answers.fail(request, number)
            else:
                self._answers.reply(request, _result(slot, request))
        finally:
            self._slots.clear(index)


def _write(device: WritableDevice, slot: memoryview) -> None:
    _, offset, size, *_ = fuse.WRITE_IN.unpack_from(slot, fuse.IN_HEADER.size)
    if offset + size > device.size:
        raise OSError(errno.ENOSPC, "it is behind the end of the device")
    device.write(offset, slot[fuse.WRITE_HEADER : fuse.WRITE_HEADER + size])


def _discard(device: WritableDevice, slot: memoryview) -> None:
    _, offset, length, mode, _ = fuse.FALLOCATE_IN.unpack_from(slot, fuse.IN_HEADER.size)
    if mode not in _ZEROING:
        raise OSError(errno.EOPNOTSUPP, "a device can only be discarded or zeroed")
    device.discard(min(offset, device.size), min(offset + length, device.size))


def _flush(device: WritableDevice, _: memoryview) -> None:
    device.flush()


def _result(slot: memoryview, request: fuse.Request) -> bytes:
    if request.opcode != fuse.WRITE:
        return b""
    size = fuse.WRITE_IN.unpack_from(slot, fuse.IN_HEADER.size)[2]
    return fuse.WRITE_OUT.pack(size, 0)


def _tried(device: WritableDevice, work: Callable[..., None], *arguments: object) -> int:
    """Do what the kernel asks for; return 0, or the errno that it is told."""
    path = {"path": str(device.directory)}
    try:
        work(*arguments)
    except OSError as error:
        log.warning("cannot read or write a device: %s", error, extra=path)
        return error.errno if error.errno in _TOLD else errno.EIO
    except LaminaError as error:
        log.warning("cannot read or write a device: %s", error, extra=path)
        return errno.EIO
    except Exception:
        log.exception("cannot read or write a device", extra=path)
        return errno.EIO
    return 0


def _be_spared() -> None:
    """Have this thread not wait for dirty pages that only it can write."""
    with suppress(OSError):  # without CAP_SYS_RESOURCE it takes its chances
        become_io_flusher()
