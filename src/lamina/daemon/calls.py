"""What is recorded of each call that has ended: a line for those of interest, and the metrics.

Runs for every call, on the event loop for the short ones: what a successful call costs here is one
comparison and, where metrics are on, a look-up and an addition.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

log = logging.getLogger(__name__)

SLOW_SECONDS = 1.0
"""A call that takes longer is worth a line although it succeeds."""
_CODES = (
    "OK", "Canceled", "Unknown", "InvalidArgument", "DeadlineExceeded", "NotFound", "AlreadyExists",
    "PermissionDenied", "ResourceExhausted", "FailedPrecondition", "Aborted", "OutOfRange",
    "Unimplemented", "Internal", "Unavailable", "DataLoss", "Unauthenticated",
)  # fmt: skip
_OURS = frozenset({"Unknown", "PermissionDenied", "ResourceExhausted", "Internal", "Unavailable",
                   "DataLoss"})  # fmt: skip
"""Failures that the administrator should see; the others tell a client what it asked."""

Measure = Callable[[str, str, str, float], None]
"""Counts a call: its method, snapshotter, the code's name, seconds."""


def code_name(code: int) -> str:
    """Return gRPC's name of a status code, as containerd spells it in its metrics."""
    return _CODES[code] if 0 <= code < len(_CODES) else "Unknown"


class CallRecorder:
    """Records calls; may be told of several at a time.

    Args:
        names: the snapshotter's id for each name by which it may be asked for, so that what a
            client invents becomes no label of the metrics.
        measure: the metrics; None where they are off.
    """

    def __init__(self, names: dict[str, str], measure: Measure | None = None) -> None:
        self._names = names
        self._measure = measure

    def __call__(
        self,
        method: str,
        snapshotter: str,
        key: str,
        code: int,
        seconds: float,
        error: BaseException | None = None,
    ) -> None:
        """Record one call, of which `snapshotter` and `key` may be empty where it went wrong."""
        if self._measure is not None:
            id = self._names.get(snapshotter, "")
            self._measure(method, id, "OK" if not code else code_name(code), seconds)
        if code or seconds > SLOW_SECONDS:
            _log(method, snapshotter, key, code_name(code), seconds, error)


def _log(
    method: str,
    snapshotter: str,
    key: str,
    code: str,
    seconds: float,
    error: BaseException | None,
) -> None:
    fields = {
        "method": method,
        "snapshotter": snapshotter,
        "key": key,
        "code": code,
        "duration": f"{seconds * 1000:.3f}ms",
    }
    if code == "OK":
        log.info("call was slow", extra=fields)
        return
    if code == "AlreadyExists":  # to a client that unpacks, this is the answer "nothing to do"
        log.info("exists already", extra={**fields, "error": str(error)})
        return
    level = logging.WARNING if code in _OURS else logging.INFO
    log.log(level, "call failed", extra={**fields, "error": str(error)})
