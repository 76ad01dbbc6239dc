"""libzfs_core and libnvpair, loaded when they are first needed, and their lists of named values.

Their functions return an errno, and leave that of the C library alone.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
from collections.abc import Mapping

_VERSIONS = ("3", "1")
"""Of both libraries' names: since ZFS 2.1, and before."""
_UNIQUE_NAMES = 1
_C = ctypes.c_char_p
_P = ctypes.c_void_p
_PROTOTYPES: Mapping[str, tuple[type, ...]] = {
    "lzc_create": (_C, ctypes.c_int, _P, _P, ctypes.c_uint),
    "lzc_clone": (_C, _C, _P),
    "lzc_snapshot": (_P, _P, _P),
    "lzc_destroy": (_C,),
    "lzc_destroy_snaps": (_P, ctypes.c_int, _P),
    "lzc_promote": (_C, _C, ctypes.c_int),
    "lzc_exists": (_C,),
    "lzc_channel_program": (_C, _C, ctypes.c_uint64, ctypes.c_uint64, _P, _P),
    "lzc_channel_program_nosync": (_C, _C, ctypes.c_uint64, ctypes.c_uint64, _P, _P),
    "nvlist_alloc": (_P, ctypes.c_uint, ctypes.c_int),
    "nvlist_add_string": (_P, _C, _C),
    "nvlist_add_uint64": (_P, _C, ctypes.c_uint64),
    "nvlist_add_boolean": (_P, _C),
    "nvlist_lookup_string": (_P, _C, _P),
    "nvlist_lookup_int64": (_P, _C, _P),
}


class NvList:
    """A list of named values; in its context, it is an argument of a function of ctypes."""

    def __init__(self, values: Mapping[str, str | int | bool]) -> None:
        self._as_parameter_ = _P()
        check(_pairs().nvlist_alloc(ctypes.byref(self._as_parameter_), _UNIQUE_NAMES, 0), "")
        for name, value in values.items():
            self._add(name.encode(), value)

    @classmethod
    def adopt(cls, handle: ctypes.c_void_p) -> NvList:
        """Return the list that a function has made; null for an empty one."""
        if handle.value is None:
            return cls({})
        adopted = cls.__new__(cls)
        adopted._as_parameter_ = handle
        return adopted

    def __enter__(self) -> NvList:
        return self

    def __exit__(self, *exc: object) -> None:
        free(self._as_parameter_)

    def get(self, name: str) -> str | int | None:
        """Return a string or a signed number; None where there is none of that name."""
        text = _C()
        if not _pairs().nvlist_lookup_string(self, name.encode(), ctypes.byref(text)):
            return (text.value or b"").decode()
        number = ctypes.c_int64()
        if not _pairs().nvlist_lookup_int64(self, name.encode(), ctypes.byref(number)):
            return number.value
        return None

    def _add(self, name: bytes, value: str | int | bool) -> None:
        """Add a value; True stands for a name without one."""
        if value is True:
            code = _pairs().nvlist_add_boolean(self, name)
        elif isinstance(value, int):
            code = _pairs().nvlist_add_uint64(self, name, value)
        else:
            code = _pairs().nvlist_add_string(self, name, value.encode())
        check(code, os.fsdecode(name))


def free(handle: ctypes.c_void_p) -> None:
    """Free a list; null is none."""
    _pairs().nvlist_free(handle)


def check(code: int, name: str, *, said: str = "") -> None:
    """Raise the OSError that a function's result stands for."""
    if code:
        raise OSError(code, said or os.strerror(code), name)


@functools.cache
def core() -> ctypes.CDLL:
    """Return libzfs_core, ready for use.

    Raises:
        OSError: ENOPKG without the library; what opening /dev/zfs says without the module.
    """
    _pairs()
    library = _load("zfs_core")
    # Its own attempt says less about what is amiss, and the module need not be loaded for it.
    os.close(os.open("/dev/zfs", os.O_RDWR | os.O_CLOEXEC))
    library.libzfs_core_init.argtypes = ()
    check(library.libzfs_core_init(), "/dev/zfs")
    return library


@functools.cache
def _pairs() -> ctypes.CDLL:
    library = _load("nvpair")
    library.nvlist_free.argtypes = (_P,)
    library.nvlist_free.restype = None
    return library


def _load(name: str) -> ctypes.CDLL:
    for version in _VERSIONS:
        try:
            library = ctypes.CDLL(f"lib{name}.so.{version}")
        except OSError:
            continue
        for function, arguments in _PROTOTYPES.items():
            if function.startswith("lzc") == (name == "zfs_core"):
                getattr(library, function).argtypes = arguments
        return library
    raise OSError(errno.ENOPKG, "the library is not installed", f"lib{name}.so.{_VERSIONS[0]}")
