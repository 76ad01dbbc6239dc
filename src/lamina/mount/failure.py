"""What the kernel says -> the error tree, with what was tried and what may help."""

from __future__ import annotations

import errno
import os

from lamina.errors import (
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    LaminaError,
    NotFound,
    NotImplementedHere,
    PermissionDenied,
    ResourceExhausted,
)

_KINDS: dict[int, tuple[type[LaminaError], str]] = {
    errno.ENOENT: (NotFound, ""),
    errno.ENOTDIR: (FailedPrecondition, ""),
    errno.EPERM: (PermissionDenied, "mounting needs root (CAP_SYS_ADMIN)"),
    errno.EACCES: (PermissionDenied, "root is needed, and `ro` where the device is read-only"),
    errno.EBUSY: (FailedPrecondition, "find what uses it with lsof or fuser -m"),
    errno.EINVAL: (InvalidArgument, "the last lines of dmesg may say more"),
    errno.ENODEV: (FailedPrecondition, "the kernel lacks this filesystem; modprobe may load it"),
    errno.ENOSYS: (NotImplementedHere, "Linux 5.12 or newer is needed"),
    errno.ENAMETOOLONG: (InvalidArgument, "shorter paths help, such as a root nearer to /"),
    errno.EOPNOTSUPP: (NotImplementedHere, ""),
    errno.ENOSPC: (ResourceExhausted, "see /proc/sys/fs/mount-max and the space on the disk"),
    errno.ENOMEM: (ResourceExhausted, ""),
    errno.EMFILE: (ResourceExhausted, "raise the limit of open files"),
    errno.ENFILE: (ResourceExhausted, "raise the limit of open files"),
    errno.ELOOP: (FailedPrecondition, "directories repeat, overlap or link in a circle"),
    errno.ESTALE: (FailedPrecondition, "the upper directory was used with other lower ones"),
    errno.EROFS: (FailedPrecondition, ""),
    errno.ENOTBLK: (InvalidArgument, "a file needs the option loop"),
    errno.EUCLEAN: (DataLoss, "the filesystem is damaged; fsck may repair it"),
    errno.EBADMSG: (DataLoss, "the filesystem is damaged; fsck may repair it"),
    errno.EIO: (DataLoss, "the device cannot be read; see dmesg"),
    errno.ETIMEDOUT: (DeadlineExceeded, ""),
}


def failure(error: OSError, tried: str, *, hint: str = "") -> LaminaError:
    """Return the tree's error for a failed system call.

    Args:
        error: what the call raised; its text may carry the kernel's own message.
        tried: the operation in words, with what it was tried on.
        hint: what helps, where that is known better than from errno alone.
    """
    kind, usual_hint = _KINDS.get(error.errno or 0, (LaminaError, ""))
    said = error.strerror or str(error)
    if error.errno == errno.EINVAL and said != os.strerror(errno.EINVAL):
        usual_hint = ""  # the kernel has said what is wrong
    name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
    if name and name not in tried and not name.startswith("/proc/self/fd/"):
        said = f"{name}: {said}"
    return kind(f"{tried}: {said}", hint=hint or usual_hint)
