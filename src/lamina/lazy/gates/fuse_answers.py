"""What a FUSE filesystem of numbered files answers, but for what is asked of their data.

All state is in the numbers: node N + 1 is the file `N`, whose size never changes, so that a new
process serves an old mount without knowing what was looked up or opened before.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Mapping
from typing import NamedTuple

from lamina.linux import fuse

_BLOCK = 4096
_MAX_PAGES = 256
"""Pages of one request: 1 MiB, what the kernel allows unless its administrator says otherwise."""
MAX_READ = _MAX_PAGES * _BLOCK
"""Bytes of a read."""

_FOREVER = 1 << 31
"""Seconds for which names and attributes hold: they never change."""


class Terms(NamedTuple):
    """What is agreed upon with the kernel.

    Attributes:
        flags: of INIT, those that are wanted besides MAX_PAGES.
        max_background: requests that it sends at a time while nobody waits for each of them.
        max_write: bytes of a write; 0 where files are only read.
        open_flags: of each file that is opened.
    """

    flags: int
    max_background: int
    max_write: int = 0
    open_flags: int = fuse.FOPEN_KEEP_CACHE


class Answers:
    """Answers the requests of one connection. Safe to use from any thread.

    Args:
        device: the connection; stays the caller's.
        sizes: returns the files that there are, by number, with their bytes.
        terms: for the kernel.
    """

    def __init__(self, device: int, sizes: Callable[[], Mapping[int, int]], terms: Terms) -> None:
        self._device = device
        self._sizes = sizes
        self._terms = terms
        self._known = {
            fuse.INIT: self._init,
            fuse.LOOKUP: self._lookup,
            fuse.GETATTR: self._getattr,
            fuse.OPEN: self._open,
            fuse.OPENDIR: self._opendir,
            fuse.READDIR: self._readdir,
            fuse.STATFS: self._statfs,
            fuse.RELEASE: self._nothing,
            fuse.RELEASEDIR: self._nothing,
            fuse.DESTROY: self._nothing,
        }

    def answer(self, slot: memoryview, request: fuse.Request) -> None:
        """Answer a request about names and attributes, and any that is not known, at once."""
        if request.opcode in fuse.NO_REPLY:
            return
        answer = self._known.get(request.opcode)
        payload = None if answer is None else answer(slot, request)
        if answer is None:
            self.fail(request, errno.ENOSYS)
        elif payload is None:
            self.fail(request, errno.ENOENT)
        else:
            self.reply(request, payload)

    def reply(self, request: fuse.Request, payload: bytes | memoryview) -> None:
        """Answer a request with its result, unless it is answered already."""
        try:
            fuse.reply(self._device, request.unique, payload)
        except OSError as error:
            if error.errno != errno.ENOENT:  # nobody waits any more
                raise

    def fail(self, request: fuse.Request, number: int) -> None:
        """Answer a request with an errno, unless it is answered already."""
        try:
            fuse.reply_error(self._device, request.unique, number)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise

    def _init(self, slot: memoryview, _: fuse.Request) -> bytes:
        _, _, read_ahead, flags = fuse.INIT_IN.unpack_from(slot, fuse.IN_HEADER.size)
        terms = self._terms
        flags &= terms.flags | fuse.MAX_PAGES
        return fuse.INIT_OUT.pack(
            fuse.MAJOR, fuse.MINOR, read_ahead, flags, terms.max_background, terms.max_background,
            max(terms.max_write, _BLOCK), 1, _MAX_PAGES, 0, 0,
        )  # fmt: skip

    def _lookup(self, slot: memoryview, request: fuse.Request) -> bytes | None:
        length = fuse.IN_HEADER.unpack_from(slot)[0]
        name = bytes(slot[fuse.IN_HEADER.size : length]).rstrip(b"\0")
        if request.node != fuse.ROOT_ID or not name.isdigit() or name != b"%d" % int(name):
            return None
        node = int(name) + 1
        attributes = self._attributes(node)
        if attributes is None:
            return None
        return fuse.ENTRY_OUT.pack(node, 0, _FOREVER, _FOREVER, 0, 0) + attributes

    def _getattr(self, _: memoryview, request: fuse.Request) -> bytes | None:
        attributes = self._attributes(request.node)
        if attributes is None:
            return None
        return fuse.ATTR_OUT.pack(_FOREVER, 0, 0) + attributes

    def _attributes(self, node: int) -> bytes | None:
        if node == fuse.ROOT_ID:
            size, mode = 0, stat.S_IFDIR | 0o500
        elif (found := self._sizes().get(node - 1)) is not None:
            size, mode = found, stat.S_IFREG | (0o600 if self._terms.max_write else 0o400)
        else:
            return None
        blocks = -(-size // 512)
        owner = os.geteuid(), os.getegid()
        return fuse.ATTR.pack(node, size, blocks, 0, 0, 0, 0, 0, 0, mode, 1, *owner, 0, _BLOCK, 0)

    def _open(self, _: memoryview, request: fuse.Request) -> bytes | None:
        if request.node - 1 not in self._sizes():
            return None
        return fuse.OPEN_OUT.pack(0, self._terms.open_flags, 0)

    def _opendir(self, _slot: memoryview, _request: fuse.Request) -> bytes:
        return fuse.OPEN_OUT.pack(0, 0, 0)

    def _readdir(self, slot: memoryview, _request: fuse.Request) -> bytes:
        _, offset, size, *_ = fuse.READ_IN.unpack_from(slot, fuse.IN_HEADER.size)
        entries = b""
        for number in sorted(number for number in self._sizes() if number > offset):
            name = b"%d" % number
            head = fuse.DIRENT.pack(number + 1, number, len(name), stat.S_IFREG >> 12)
            entry = (head + name).ljust(-(-(len(head) + len(name)) // 8) * 8, b"\0")
            if len(entries) + len(entry) > size:
                break
            entries += entry
        return entries

    def _statfs(self, _slot: memoryview, _request: fuse.Request) -> bytes:
        return fuse.KSTATFS.pack(0, 0, 0, len(self._sizes()), 0, _BLOCK, 255, _BLOCK, 0)

    def _nothing(self, _slot: memoryview, _request: fuse.Request) -> bytes:
        return b""
