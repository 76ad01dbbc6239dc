"""Reading an answer's body at full speed without waiting for ever."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

import urllib3
from urllib3.exceptions import HTTPError

from lamina.errors import Unavailable
from lamina.images.registry.cancel import Cancel
from lamina.images.registry.connections import reason
from lamina.images.registry.failure import Failure
from lamina.images.registry.retry import RetryPolicy

CHUNK = 256 << 10
"""Most bytes taken from a socket at once; it gives what it has, without waiting for more."""
SMALL_SECONDS = 10.0


def copy_body(
    answer: urllib3.BaseHTTPResponse,
    write: Callable[[bytes], None],
    policy: RetryPolicy,
    cancel: Cancel,
    what: str,
) -> None:
    """Hand the body to `write` piece by piece, to its end.

    Only the time spent waiting for the network counts against the policy's minimum progress.

    Raises:
        Failure: the connection broke, ended early, fell silent or brings next to nothing.
        Cancelled: told to stop.
    """
    waited, brought = 0.0, 0
    with cancel.interrupting(lambda: _interrupt(answer)):
        while True:
            began = time.monotonic()
            data = _read_some(answer, cancel, what)
            if not data:
                return
            waited += time.monotonic() - began
            brought += len(data)
            write(data)
            if waited < policy.progress_window:
                continue
            if brought < policy.progress_bytes:
                text = f"{what}: only {brought} bytes came in {waited:.0f} s"
                raise Failure(Unavailable(text), transient=True)
            waited, brought = 0.0, 0


def read_small(answer: urllib3.BaseHTTPResponse, limit: int) -> bytes:
    """Return at most `limit` bytes of the body, and no more than come within `SMALL_SECONDS`.

    Raises:
        Failure: the connection broke.
    """
    data = bytearray()
    deadline = time.monotonic() + SMALL_SECONDS
    while len(data) < limit and time.monotonic() < deadline:
        try:
            piece = answer.read1(limit - len(data))
        except HTTPError as error:
            text = f"read an answer: {reason(error)}"
            raise Failure(Unavailable(text), transient=True) from error
        if not piece:
            break
        data += piece
    return bytes(data)


def _read_some(answer: urllib3.BaseHTTPResponse, cancel: Cancel, what: str) -> bytes:
    """Return what there is, b"" at the end.

    Nothing that was read while `cancel` interrupted is used: from a TLS connection that was shut
    down, the bytes that come are still encrypted.
    """
    cancel.check(what, "")
    try:
        data = answer.read1(CHUNK)
    except HTTPError as error:
        cancel.check(what, "")
        text = f"{what}: the connection broke: {reason(error)}"
        raise Failure(Unavailable(text), transient=True) from error
    cancel.check(what, "")
    return data


def _interrupt(answer: urllib3.BaseHTTPResponse) -> None:
    """End a read that another thread waits in; an answer that is done has nothing to end."""
    with suppress(ValueError, OSError):
        answer.shutdown()
