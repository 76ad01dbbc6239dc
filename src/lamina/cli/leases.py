"""`lamina leases`: ctr's verbs on what keeps content and layers from being collected."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lamina.cli.app import App, Group, for_each, parse_labels, pass_app
from lamina.cli.output import format_labels, format_time, json_option, print_json, print_table
from lamina.core.labels import GC_EXPIRE
from lamina.core.units import parse_duration
from lamina.errors import InvalidArgument

if TYPE_CHECKING:
    from lamina.meta.leases import Lease

_ALIASES = {"list": "ls", "delete": "rm", "del": "rm", "remove": "rm"}


class Duration(click.ParamType[float]):
    """An option's value such as `1h30m`, as seconds."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Parse the text."""
        if isinstance(value, float):
            return value
        try:
            return parse_duration(value)
        except InvalidArgument as error:
            self.fail(str(error), param, ctx)


@click.group(cls=Group, aliases=_ALIASES)
def leases() -> None:
    """List, make and remove leases."""


@leases.command("ls")
@click.option("-q", "--quiet", is_flag=True, help="Print only the ids.")
@json_option
@click.argument("filters", nargs=-1)
@pass_app
def list_(app: App, quiet: bool, as_json: bool, filters: tuple[str, ...]) -> None:
    """List leases, those that a filter such as `id==x` matches where any is given."""
    store = app.store.images.leases
    found = store.all(filters)
    if as_json:
        print_json([_plain(app, lease) for lease in found])
    elif quiet:
        click.echo("".join(f"{lease.id}\n" for lease in found), nl=False)
    else:
        rows = ((i.id, format_time(i.created_ns), format_labels(_labels(i))) for i in found)
        print_table(("ID", "CREATED AT", "LABELS"), rows)


@leases.command()
@click.option("--id", default="", metavar="ID", help="Name of the lease.  [default: a random one]")
@click.option(
    "-x", "--expires", type=Duration(), default="24h", show_default=True, metavar="DURATION",
    help="When it ends, such as 90s or 1h30m; 0: never.",
)  # fmt: skip
@json_option
@click.argument("labels", nargs=-1, metavar="[KEY=VALUE]...")
@pass_app
def create(app: App, id: str, expires: float, as_json: bool, labels: tuple[str, ...]) -> None:
    """Make a lease and print its id; it holds nothing yet."""
    made = app.store.images.leases.create(id, labels=parse_labels(labels), seconds=expires or None)
    if as_json:
        print_json(_plain(app, made))
    else:
        click.echo(made.id)


@leases.command()
@click.option("--sync", is_flag=True, help="Return when the disk space is free.")
@click.argument("ids", nargs=-1, required=True)
@pass_app
def rm(app: App, ids: tuple[str, ...], sync: bool) -> None:
    """Remove leases, and the content and layers that nothing else needs."""

    def remove(id: str) -> None:
        app.store.images.leases.delete(id)
        click.echo(id)

    try:
        for_each(ids, remove)
    finally:
        if sync:
            app.store.cleanup()
        else:
            app.store.collect()


def _labels(lease: Lease) -> dict[str, str]:
    """Return the labels, with the one by which containerd says when a lease ends."""
    expires = {GC_EXPIRE: format_time(lease.expires_ns)} if lease.expires_ns else {}
    return {**lease.labels, **expires}


def _plain(app: App, lease: Lease) -> dict[str, object]:
    resources = app.store.images.leases.resources(lease.id)
    return {
        "ID": lease.id,
        "CreatedAt": format_time(lease.created_ns),
        "ExpiresAt": format_time(lease.expires_ns) if lease.expires_ns else None,
        "Labels": _labels(lease),
        "Resources": [{"Type": resource.type, "ID": resource.id} for resource in resources],
    }
