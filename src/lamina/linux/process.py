"""What a process or thread can change about itself: namespaces, children, limits."""

from __future__ import annotations

import ctypes

from lamina.linux.libc import function

CLONE_NEWNS = 0x00020000
"""A mount namespace of its own, a copy of the one so far; implies its own working directory."""

_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_IO_FLUSHER = 57

_unshare = function("unshare", ctypes.c_int)
_prctl = function("prctl", ctypes.c_int, *[ctypes.c_ulong] * 4)


def unshare(flags: int) -> None:
    """Leave namespaces for new ones, the calling thread alone; CLONE_NEWNS needs CAP_SYS_ADMIN."""
    _unshare(flags)


def raise_descriptor_limit() -> None:
    """Let this process have as many descriptors as it may: RLIMIT_NOFILE's hard limit."""
    import resource  # only daemons need it

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def become_subreaper() -> None:
    """Have descendants that lose their parent become children of this process (Linux >= 3.4)."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def become_io_flusher() -> None:
    """Say that the kernel writes its dirty pages through this thread, and those it starts later.

    The thread is not made to wait for what only itself can bring about: neither when it asks for
    memory, nor because others have dirtied too many pages. Linux >= 5.6; needs CAP_SYS_RESOURCE.
    Source: PR_SET_IO_FLUSHER(2const).

    Raises:
        OSError: EINVAL before that; EPERM.
    """
    _prctl(_PR_SET_IO_FLUSHER, 1, 0, 0, 0)
