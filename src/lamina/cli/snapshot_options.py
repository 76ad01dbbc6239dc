"""The options that say which snapshotter is meant, and whether it is a daemon's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lamina.cli.app import DEFAULT_NAMESPACE, Command, Group, stored_option


def _where() -> list[click.Option]:
    """Return the options that say which snapshotter; the group and its verbs have them."""
    return [
        stored_option(
            "snapshotter_option",
            "--snapshotter",
            envvar="CONTAINERD_SNAPSHOTTER",
            metavar="NAME",
            help="Snapshotter to use.  [default: overlayfs]",
        ),
        stored_option(
            "address_option",
            "--address",
            "-a",
            convert=_socket,
            envvar="LAMINA_ADDRESS",
            metavar="SOCK",
            help="Socket of a daemon, Lamina's or containerd's, whose snapshots are meant.",
        ),
        stored_option(
            "namespace_option",
            "--namespace",
            "-n",
            envvar="CONTAINERD_NAMESPACE",
            metavar="NAME",
            help=f"Namespace of a containerd at --address.  [default: {DEFAULT_NAMESPACE}]",
        ),
    ]


def _socket(address: str) -> Path:
    return Path(address.removeprefix("unix://"))


class Verb(Command):
    """A verb on snapshots."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.extend(_where())


class Verbs(Group):
    """The group of them."""

    command_class = Verb

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.extend(_where())
