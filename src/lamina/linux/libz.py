"""zlib by ctypes, for what Python's module does not tell: where the blocks of a deflate stream are.

A stream can be decompressed from a place between two blocks on, given the bits of the byte there
that belong to what follows, and the 32 KiB of output before. `zlib.h` has the functions; Python's
own module links the same library, or has it built in. Calls let other threads run.
"""

from __future__ import annotations

import ctypes
import errno
import functools
from array import array
from collections.abc import Callable, Iterator
from typing import NamedTuple

WINDOW = 1 << 15
"""Bytes of output that what follows may refer to."""
_Z_OK, _Z_STREAM_END, _Z_BUF_ERROR = 0, 1, -5
_Z_BLOCK = 5
_GZIP_WBITS = 31
_VERSION = b"1"
"""zlib compares the first character of the version that a program was made with."""
_BOUNDARY, _LAST = 128, 64
"""Of `data_type`: inflate stopped before a block; the block before was the member's last."""
_UNUSED_BITS = 7
_INPUT = 128 << 10
_OUTPUT = 256 << 10
_P = ctypes.c_void_p


class ZStream(ctypes.Structure):
    """`z_stream` of `zlib.h`."""

    _fields_ = (
        ("next_in", _P),
        ("avail_in", ctypes.c_uint),
        ("total_in", ctypes.c_ulong),
        ("next_out", _P),
        ("avail_out", ctypes.c_uint),
        ("total_out", ctypes.c_ulong),
        ("msg", ctypes.c_char_p),
        ("state", _P),
        ("zalloc", _P),
        ("zfree", _P),
        ("opaque", _P),
        ("data_type", ctypes.c_int),
        ("adler", ctypes.c_ulong),
        ("reserved", ctypes.c_ulong),
    )


class RestartPoint(NamedTuple):
    """A place between two blocks.

    Attributes:
        out_offset: bytes of output before it.
        in_offset: byte of the stream where the next begins that is not taken up at all.
        bits: how many high bits of the byte before belong to what follows.
        byte: that byte.
        window: output before it, 32 KiB at most; empty at the first block of a member.
    """

    out_offset: int
    in_offset: int
    bits: int
    byte: int
    window: bytes


class GzipBlocks:
    """A gzip stream of one or more members that is decompressed once, from its beginning.

    Attributes:
        points: the first block of each member, and others that are `spacing` apart or more.
        ends: pairs of numbers: bytes of output up to the end of a block or a member, and the byte
            of the stream up to which that takes.
    """

    def __init__(self, read: Callable[[int], bytes], *, spacing: int) -> None:
        """Begin.

        Args:
            read: returns at least one byte of the stream and at most as many as asked for; none at
                its end.
            spacing: bytes of output from one point to the next, at least.

        Raises:
            OSError: ENOPKG without libz.so.1.
        """
        self.points: list[RestartPoint] = []
        self.ends = array("Q")
        self._read = read
        self._spacing = spacing
        self._library = _library()
        self._stream = ZStream()
        self._input = b""
        self._before = 0
        self._last = 0
        self._done = 0
        self._begins = True

    def __iter__(self) -> Iterator[bytes]:
        """Yield the output, as long as the caller takes it.

        Raises:
            OSError: EBADMSG, if the stream is damaged or cut off; the text says where.
        """
        library, stream = self._library, self._stream
        size = ctypes.sizeof(ZStream)
        _check(library.inflateInit2_(ctypes.byref(stream), _GZIP_WBITS, _VERSION, size), stream, 0)
        try:
            yield from self._members()
        finally:
            library.inflateEnd(ctypes.byref(stream))

    def _members(self) -> Iterator[bytes]:
        stream = self._stream
        out = ctypes.create_string_buffer(_OUTPUT)
        stream.next_out, stream.avail_out = ctypes.addressof(out), _OUTPUT
        while True:
            if not stream.avail_in and not self._fill():
                raise OSError(errno.EBADMSG, f"gzip data ends at byte {self._offset}")
            result = self._library.inflate(ctypes.byref(stream), _Z_BLOCK)
            produced = _OUTPUT - stream.avail_out
            if result not in {_Z_OK, _Z_STREAM_END, _Z_BUF_ERROR}:
                _check(result, stream, self._offset)
            ended = result == _Z_STREAM_END
            if ended or stream.data_type & _BOUNDARY:
                self._note(self._done + produced, ended=ended)
            if ended or stream.avail_out < _OUTPUT // 2:
                if produced:
                    yield out.raw[:produced]
                self._done += produced
                stream.next_out, stream.avail_out = ctypes.addressof(out), _OUTPUT
            if ended:
                if not stream.avail_in and not self._fill():
                    return
                self._library.inflateReset(ctypes.byref(stream))
                self._begins = True

    @property
    def _offset(self) -> int:
        """Bytes of the stream that are taken up."""
        return self._before + len(self._input) - int(self._stream.avail_in)

    def _fill(self) -> bool:
        data = self._read(_INPUT)
        if self._input:
            self._last = self._input[-1]
        self._before += len(self._input)
        # The structure has the address only: the bytes have to stay where they are.
        self._input = data
        self._stream.next_in = ctypes.cast(ctypes.c_char_p(data), _P)
        self._stream.avail_in = len(data)
        return bool(data)

    def _note(self, out_offset: int, *, ended: bool) -> None:
        """Take down where a block or a member ends, and whether what follows can be a beginning."""
        stream = self._stream
        self.ends.extend((out_offset, self._offset))
        if ended or stream.data_type & _LAST:
            return
        if not self._begins and out_offset < self.points[-1].out_offset + self._spacing:
            return
        used = len(self._input) - stream.avail_in
        byte = self._input[used - 1] if used else self._last
        window = b"" if self._begins else self._window()
        bits = stream.data_type & _UNUSED_BITS
        self.points.append(RestartPoint(out_offset, self._offset, bits, byte, window))
        self._begins = False

    def _window(self) -> bytes:
        window = ctypes.create_string_buffer(WINDOW)
        length = ctypes.c_uint(WINDOW)
        result = self._library.inflateGetDictionary(
            ctypes.byref(self._stream), window, ctypes.byref(length)
        )
        _check(result, self._stream, self._offset)
        return window.raw[: length.value]


def _check(result: int, stream: ZStream, offset: int) -> None:
    """Raise the OSError that a function's result stands for."""
    if result != _Z_OK:
        said = (stream.msg or b"").decode(errors="replace") or f"zlib error {result}"
        raise OSError(errno.EBADMSG, f"gzip data at byte {offset}: {said}")


@functools.cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libz.so.1")
    except OSError as error:
        raise OSError(errno.ENOPKG, "the library is not installed", "libz.so.1") from error
    pointer = ctypes.POINTER(ZStream)
    library.inflateInit2_.argtypes = (pointer, ctypes.c_int, ctypes.c_char_p, ctypes.c_int)
    library.inflate.argtypes = (pointer, ctypes.c_int)
    library.inflateReset.argtypes = (pointer,)
    library.inflateEnd.argtypes = (pointer,)
    library.inflateGetDictionary.argtypes = (pointer, _P, ctypes.POINTER(ctypes.c_uint))
    return library
