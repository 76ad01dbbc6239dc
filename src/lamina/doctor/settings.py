"""Looks whether containerd is configured for Lamina."""

from __future__ import annotations

import socket
from pathlib import Path

from lamina.config.containerd import proxy_snapshotters
from lamina.doctor.finding import Finding, Level
from lamina.errors import ConfigError

_NAME = "containerd"


def examine_containerd(config: Path, address: str) -> Finding:
    """Tell whether containerd's configuration names this daemon's snapshotters.

    Args:
        config: containerd's configuration file.
        address: the socket on which Lamina's daemon would serve.
    """
    if not config.exists():
        return Finding(_NAME, Level.NOTE, f"no {config}: it is not installed, or unconfigured")
    try:
        proxies = proxy_snapshotters(config)
    except ConfigError as error:
        return Finding(_NAME, Level.WARN, "; ".join(error.problems), f"correct {config}")
    ours = sorted(name for name, where in proxies.items() if where == address)
    if not ours:
        entry = f'[proxy_plugins.lamina-overlayfs] type = "snapshot", address = "{address}"'
        fix = f"to use Lamina from containerd, add to {config}: {entry}"
        return Finding(_NAME, Level.NOTE, f"{config} names none of Lamina's snapshotters", fix)
    names = ", ".join(ours)
    if not is_served(address):
        what = f"{config} names {names} on {address}, where nobody listens"
        fix = f"systemctl start lamina, or lamina serve --address {address}"
        return Finding(_NAME, Level.WARN, what, fix)
    return Finding(_NAME, Level.OK, f"{config} names {names}, which are served")


def is_served(address: str) -> bool:
    """Tell whether a process listens on that unix socket, as far as this user may know."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1)
        try:
            client.connect(address)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError:
            return True  # not for this user, or busy: either way somebody has made it
    return True
