"""Tells the service manager how the daemon is: systemd's sd_notify(3) and its watchdog."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import MutableMapping

log = logging.getLogger(__name__)

_TIMEOUT_SECONDS = 1.0
"""How long a manager that does not read may delay the daemon."""


class Notifier:
    """Sends datagrams to the service manager; without one, does nothing.

    Args:
        address: `NOTIFY_SOCKET`: a path, or `@NAME` for an abstract socket; None for no manager.
        watchdog_seconds: the manager restarts the daemon when it is silent for this long; None
            when it does not watch.
    """

    def __init__(self, address: str | None = None, watchdog_seconds: float | None = None) -> None:
        self._address = address
        self.watchdog_seconds = watchdog_seconds

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str]) -> Notifier:
        """Take the manager's variables out of the environment, lest child processes use them."""
        address = environ.pop("NOTIFY_SOCKET", "")
        microseconds = environ.pop("WATCHDOG_USEC", "")
        watched = environ.pop("WATCHDOG_PID", "") in {"", str(os.getpid())}
        if not watched or not microseconds.isdecimal() or not int(microseconds):
            return cls(address or None)
        return cls(address or None, int(microseconds) / 1e6)

    def ready(self, status: str) -> None:
        """Say that calls are answered from now on."""
        self._send(f"READY=1\nSTATUS={status}")

    def stopping(self, status: str) -> None:
        """Say that the daemon is about to end."""
        self._send(f"STOPPING=1\nSTATUS={status}")

    def alive(self) -> None:
        """Keep the watchdog from barking."""
        self._send("WATCHDOG=1")

    def _send(self, state: str) -> None:
        if self._address is None:
            return
        address = self._address
        if address.startswith("@"):
            address = "\0" + address[1:]
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.settimeout(_TIMEOUT_SECONDS)
            try:
                channel.sendto(state.encode(), address)
            except OSError as error:  # the service is as good without
                log.warning("cannot tell the service manager %r: %s", state, error)
