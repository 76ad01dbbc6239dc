"""Memory that outlives a process, in which the kernel leaves the requests that it took.

A worker reads requests of the kernel (fanotify events, FUSE and NBD requests) straight into a slot
of a memory file of which the holder keeps a copy. read(2) takes a request off the kernel's queue
and fills the slot in one system call, in which a process cannot be killed: at every instant a
request is in the queue, in a slot, or answered. The next worker finds what is in slots and answers
it.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
from collections.abc import Iterator

_LENGTH = struct.Struct("=I")
"""What all requests begin with, and is never 0: their length, or that of NBD, a magic number."""


class Slots:
    """The slots of one descriptor; one thread takes, any thread clears.

    Args:
        memory: descriptor of the memory file, from `new_memory`; may be closed afterwards.
        size: bytes of a slot.
        room: bytes at the end of each slot that are not given to read(2), for notes.
    """

    def __init__(self, memory: int, size: int, *, room: int = 0) -> None:
        count = os.fstat(memory).st_size // size
        self._map = mmap.mmap(memory, count * size)
        view = memoryview(self._map)
        self._slots = [view[index * size : (index + 1) * size] for index in range(count)]
        self._readable = [slot[: size - room] for slot in self._slots]
        self._resident = bytearray(count)
        # Kept as a list whose ends are atomic: a slot that is cleared can be taken at once.
        self._free = [index for index in range(count) if not self._taken(index)]
        self._free.reverse()

    def left(self) -> Iterator[tuple[int, memoryview]]:
        """Yield the slots that an earlier process has not cleared, with their contents."""
        for index, slot in enumerate(self._slots):
            if self._taken(index):
                yield index, slot

    @property
    def is_full(self) -> bool:
        """Whether nothing can be taken before something is cleared."""
        return not self._free

    def take(self, fd: int, *, note: bytes = b"") -> tuple[int, memoryview] | None:
        """Take one request of a descriptor; None when it is non-blocking, and there is none.

        The first word of the slot is cleared by `clear` only, after the answer. It stays 0 where
        read(2) came to the end of a stream.

        Args:
            fd: the descriptor.
            note: what the slot's room is to begin with, before there is a request in it.

        Raises:
            OSError: of read(2); ENODEV from FUSE says that it is not mounted any more.
        """
        index = self._free.pop()
        if not self._resident[index]:
            self._make_resident(index)
        start = len(self._readable[index])
        self._slots[index][start : start + len(note)] = note
        try:
            os.readv(fd, (self._readable[index],))
        except OSError as error:
            self.clear(index)
            # ENOENT: a FUSE request was interrupted while it was being read.
            if error.errno in {errno.EAGAIN, errno.EINTR, errno.ENOENT}:
                return None
            raise
        return index, self._slots[index]

    def clear(self, index: int) -> None:
        """Forget an answered request."""
        _LENGTH.pack_into(self._slots[index], 0, 0)
        self._free.append(index)

    def _make_resident(self, index: int) -> None:
        """Have this process's pages of a free slot in its page table.

        While read(2) has to bring one there, a kill makes FUSE fail the request with EIO.
        """
        slot = self._slots[index]
        for page in range(0, len(slot), mmap.PAGESIZE):
            slot[page] = 0
        self._resident[index] = 1

    def _taken(self, index: int) -> bool:
        return bool(_LENGTH.unpack_from(self._slots[index])[0])


def new_memory(name: str, size: int, count: int) -> int:
    """Return a memory file for so many slots of this size, in bytes, all free."""
    memory = os.memfd_create(name, os.MFD_CLOEXEC)
    os.ftruncate(memory, size * count)
    return memory
