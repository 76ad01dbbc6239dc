"""`lamina content`: ctr's verbs on blobs."""

from __future__ import annotations

import shutil
import sys
import time

import click

from lamina.cli.app import App, Group, for_each, pass_app
from lamina.cli.output import print_json, print_table
from lamina.core.digest import parse_digest
from lamina.core.units import format_size

_ALIASES = {"list": "ls", "delete": "rm", "del": "rm", "remove": "rm"}
_UNITS = (("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1))


@click.group(cls=Group, aliases=_ALIASES)
def content() -> None:
    """List, print and remove blobs."""


@content.command("ls")
@click.option("-q", "--quiet", is_flag=True, help="Print only the digests.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.argument("filters", nargs=-1)
@pass_app
def list_(app: App, quiet: bool, as_json: bool, filters: tuple[str, ...]) -> None:
    """List blobs, those that a filter such as `size==42` matches where any is given."""
    found = list(app.store.images.content.walk(filters))
    if as_json:
        print_json([{"Digest": i.digest, "Size": i.size, "Labels": dict(i.labels)} for i in found])
    elif quiet:
        click.echo("".join(f"{info.digest}\n" for info in found), nl=False)
    else:
        now = time.time_ns()
        rows = (
            (
                info.digest,
                format_size(info.size),
                _age(now - info.created_ns),
                ",".join(f"{key}={value}" for key, value in sorted(info.labels.items())) or "-",
            )
            for info in found
        )
        print_table(("DIGEST", "SIZE", "AGE", "LABELS"), rows)


@content.command()
@click.argument("digest")
@pass_app
def get(app: App, digest: str) -> None:
    """Write a blob to standard output."""
    with app.store.images.content.open(parse_digest(digest)) as blob:
        shutil.copyfileobj(blob, sys.stdout.buffer)


@content.command()
@click.argument("digests", nargs=-1, required=True)
@pass_app
def rm(app: App, digests: tuple[str, ...]) -> None:
    """Remove blobs, even those that an image needs: the next pull of it gets them anew."""

    def remove(digest: str) -> None:
        app.store.images.content.delete(parse_digest(digest))
        click.echo(digest)

    for_each(digests, remove)


def _age(ns: int) -> str:
    """Return a time span in its largest unit: `3 hours`."""
    seconds = max(ns // 10**9, 0)
    name, length = next((unit for unit in _UNITS if seconds >= unit[1]), _UNITS[-1])
    count = seconds // length
    return f"{count} {name}{'' if count == 1 else 's'}"
