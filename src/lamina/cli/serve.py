"""`lamina serve`: the daemon that a containerd uses through its `[proxy_plugins]`."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lamina.cli.app import App, Command, pass_app

if TYPE_CHECKING:
    from lamina.config.daemon import Daemon

CONTAINERDS_SOCKET = "/run/containerd/containerd.sock"


@click.command(cls=Command)
@click.option(
    "--address",
    metavar="SOCK",
    envvar="LAMINA_ADDRESS",
    help="Unix socket to listen on.  [default: /run/lamina/lamina.sock]",
)
@click.option("-l", "--log-level", metavar="LEVEL", help="Least level to log.  [default: info]")
@click.option("--log-format", metavar="FORMAT", help="text or json.  [default: text]")
@click.option(
    "--metrics-address",
    metavar="HOST:PORT",
    help="Serve metrics there, at /v1/metrics.  [default: nowhere]",
)
@pass_app
def serve(
    app: App,
    address: str | None,
    log_level: str | None,
    log_format: str | None,
    metrics_address: str | None,
) -> None:
    """Serve all usable snapshotters by containerd's snapshot service, on one socket.

    Options win over the configuration file. SIGTERM and SIGINT stop it when running calls have
    ended; a second one stops it at once.
    """
    if log_level is None and logging.getLogger("lamina").level == logging.DEBUG:
        log_level = "debug"
    options = {
        "grpc": {"address": address and str(Path(address).absolute())},
        "debug": {"level": log_level, "format": log_format},
        "metrics": {"address": metrics_address},
    }
    settings = _settings(app.config.daemon, options)
    from lamina.daemon.serve import serve

    serve(app.store, settings, os.environ)


def _settings(daemon: Daemon, options: dict[str, dict[str, str | None]]) -> Daemon:
    """Return the configuration with what was typed in its place."""
    from dataclasses import replace

    for section, typed in options.items():
        given = {key: value for key, value in typed.items() if value is not None}
        changed = replace(getattr(daemon, section), **given)
        if given and (faults := list(changed.problems())):
            raise click.BadParameter("; ".join(f"{section}.{fault}" for fault in faults))
        daemon = daemon._replace(**{section: changed})
    if os.path.realpath(daemon.grpc.address) == CONTAINERDS_SOCKET:
        raise click.BadParameter(
            f"{daemon.grpc.address} is containerd's own socket; name another with --address"
        )
    return daemon
