"""What a failed system call means for a layer."""

from __future__ import annotations

import errno
import os

from lamina.errors import (
    FailedPrecondition,
    FormatError,
    Internal,
    LaminaError,
    PermissionDenied,
    ResourceExhausted,
)

_ARCHIVE = {
    errno.ENAMETOOLONG: "names of at most 255 bytes, and paths of 4096",
    errno.ELOOP: "a path without a loop of links",
    errno.ENOTDIR: "a path through directories",
    errno.ENOENT: "a link to something that exists",
    errno.EINVAL: "what this filesystem can store",
    errno.E2BIG: "attributes of at most 64 KiB",
    errno.ERANGE: "attributes of at most 64 KiB",
    errno.EISDIR: "a link to something that is no directory",
}
EXHAUSTED = {
    errno.ENOSPC: "the disk is full, or out of inodes",
    errno.EDQUOT: "the quota is used up",
    errno.EFBIG: "a file is larger than this filesystem allows",
    errno.EMLINK: "a file has more names than this filesystem allows",
    errno.EMFILE: "this process has too many open files",
    errno.ENFILE: "the system has too many open files",
    errno.ENOMEM: "the machine is out of memory",
}
"""What runs out, by errno."""


def translated(error: OSError, name: bytes, at: int) -> LaminaError:
    """Return the error that tells a user what went wrong with the entry `name` at byte `at`."""
    subject = os.fsdecode(name)
    code = error.errno or 0
    if code in EXHAUSTED:
        return ResourceExhausted("extract", subject, hint=EXHAUSTED[code])
    if code in _ARCHIVE:
        got = f"{name!r} ({os.strerror(code)})"
        return FormatError("tar", at, expected=_ARCHIVE[code], got=got)
    if code in {errno.EPERM, errno.EACCES}:
        hint = "run as root, or in a user namespace that has these ids"
        return PermissionDenied("extract", subject, hint=hint)
    if code in {errno.EROFS, errno.ENOSYS}:
        return FailedPrecondition("extract", subject, hint=error.strerror or "")
    return Internal("extract", subject, hint=str(error))
