"""Whether a client sees the layers that its mounts stand on.

A driver may mount layers itself, in the daemon's mount namespace. A client in another one, to which
these mounts do not propagate, would find an empty directory in the place of each, and no error.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from lamina.core.mount import Mount, split_option, split_options, unescape_option
from lamina.errors import FailedPrecondition
from lamina.linux.peer import sees_the_same, shares_mounts
from lamina.snapshotters.lower_mounts import is_mounted

log = logging.getLogger(__name__)

_LOWER = "lowerdir="
_HINT = (
    "its mount namespace does not get the daemon's mounts: run lamina serve where containerd runs,"
    " as deploy/systemd/lamina.service does, or below a shared mount"
    " (mount --make-rshared; in Kubernetes, mountPropagation: Bidirectional)"
)


def require_visible(mounts: Sequence[Mount], pid: int) -> None:
    """Check that a process sees the layers that are mounted here and named by these mounts.

    Nothing is known of a process in another process namespace, or one that may not be looked at:
    then there is a warning, once.

    Raises:
        FailedPrecondition: it sees something else.
    """
    try:
        if pid and shares_mounts(pid):
            return
        for layer in _layers(mounts):
            if not pid:
                raise PermissionError("it is in another process namespace")
            if not sees_the_same(pid, layer):
                raise FailedPrecondition("let the caller mount layer", layer, hint=_HINT)
    except FileNotFoundError:
        return  # it is gone, and nobody waits for an answer; or the layer is, as it will find out
    except PermissionError as error:
        _warn(str(error))


@functools.cache
def _warn(reason: str) -> None:
    log.warning("cannot look whether the caller sees the layers that are mounted here: %s", reason)


def _layers(mounts: Sequence[Mount]) -> Iterator[Path]:
    for mount in mounts:
        for path in _sources(mount):
            if path.is_absolute() and is_mounted(path):
                yield path


def _sources(mount: Mount) -> Iterator[Path]:
    if mount.type == "bind":
        yield Path(mount.source)
    for option in split_options(mount.options):
        if option.startswith(_LOWER):
            for path in split_option(option.removeprefix(_LOWER), ":"):
                yield Path(unescape_option(path))
