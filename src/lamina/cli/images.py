"""`lamina images`: ctr's verbs on images."""

from __future__ import annotations

import click

from lamina.cli import (
    image_conversion,
    image_migration,
    image_mounts,
    image_push,
    image_records,
    image_transfer,
)
from lamina.cli.app import Group

_ALIASES = {"list": "ls", "delete": "rm", "del": "rm", "remove": "rm"}


@click.group(cls=Group, aliases=_ALIASES)
def images() -> None:
    """Pull, push, import, export, convert, migrate, list, check, name, mount and remove images."""


for _verb in (
    image_transfer.pull,
    image_push.push,
    image_transfer.import_,
    image_transfer.export,
    image_conversion.convert,
    image_conversion.optimize,
    image_migration.migrate,
    image_records.list_,
    image_records.check,
    image_records.usage,
    image_records.tag,
    image_records.label,
    image_records.rm,
    image_records.prune,
    image_mounts.mount,
    image_mounts.unmount,
):
    images.add_command(_verb)
