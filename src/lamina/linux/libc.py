"""The C library, loaded once; every prototype of the package is declared through this module.

A wrapper is bound once, at import, with its argument types and with an `errcheck` that turns -1
into OSError with errno and, where the call has one, the path. Wrappers hold no policy.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from typing import Any

Pathish = str | bytes | os.PathLike[str] | os.PathLike[bytes]

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000

_libc = ctypes.CDLL(None, use_errno=True)


def encoded(path: Pathish) -> bytes:
    """Return the path as C sees it.

    Raises:
        ValueError: there is a NUL in it, at which the kernel would silently cut it off.
    """
    raw = os.fsencode(path)
    if b"\0" in raw:
        raise ValueError(f"NUL byte in path {raw!r}")
    return raw


def function(name: str, *argtypes: type, path: int | None = None) -> Callable[..., int]:
    """Bind a function of the C library that returns -1 and sets errno when it fails.

    Args:
        name: as exported by libc.
        argtypes: ctypes of the arguments.
        path: index of the argument that OSError is to give as its file name.
    """
    # Indexing makes a new function object each time, so prototypes of `syscall` never mix.
    bound = _libc[name]
    bound.argtypes = argtypes
    bound.restype = ctypes.c_long if name == "syscall" else ctypes.c_int
    # typeshed wants ctypes objects where a converted restype hands over plain integers.
    check: Any = functools.partial(_check, path)
    bound.errcheck = check
    return bound


def system_call(number: int, *argtypes: type, path: int | None = None) -> Callable[..., int]:
    """Bind a system call that older C libraries have no function for.

    Numbers from 424 on are the same on every architecture but Alpha.
    """
    index = None if path is None else path + 1
    return functools.partial(
        function("syscall", ctypes.c_long, *argtypes, path=index), ctypes.c_long(number)
    )


def _check(path: int | None, result: int, _function: Any, arguments: tuple[Any, ...]) -> int:
    if result != -1:
        return result
    number = ctypes.get_errno()
    name = None if path is None else os.fsdecode(arguments[path])
    raise OSError(number, os.strerror(number), name)
