"""`lamina containers`: ctr's verbs on what is recorded of containers."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import click

from lamina.cli.app import App, Group, for_each, parse_labels, pass_app
from lamina.cli.output import (
    always_json_option,
    json_option,
    print_json,
    print_labels,
    print_table,
    printable,
)
from lamina.cli.run import containers_of
from lamina.meta.containers import Container

_ALIASES = {"list": "ls", "delete": "rm", "del": "rm", "remove": "rm"}


@click.group(cls=Group, aliases=_ALIASES)
def containers() -> None:
    """List, describe and remove containers."""


@containers.command("ls")
@click.option("-q", "--quiet", is_flag=True, help="Print only the ids.")
@json_option
@pass_app
def list_(app: App, quiet: bool, as_json: bool) -> None:
    """List containers."""
    found = list(containers_of(app).list())
    if as_json:
        print_json([_plain(container) for container in found])
    elif quiet:
        for container in found:
            click.echo(container.id)
    else:
        rows = ((c.id, printable(c.image) or "-", c.runtime) for c in found)
        print_table(("CONTAINER", "IMAGE", "RUNTIME"), rows, min_width=4, padding=4)


@containers.command()
@always_json_option
@click.option("--spec", "only_spec", is_flag=True, help="Print only the specification.")
@click.argument("id")
@pass_app
def info(app: App, id: str, only_spec: bool) -> None:
    """Describe a container as JSON."""
    store = containers_of(app)
    container = store.records.get(id)
    spec = store.bundle(id).read_spec()
    print_json(spec if only_spec else {**_plain(container), "Extensions": None, "Spec": spec})


@containers.command()
@json_option
@click.argument("id")
@click.argument("labels", nargs=-1, metavar="[KEY=VALUE]...")
@pass_app
def label(app: App, id: str, labels: tuple[str, ...], as_json: bool) -> None:
    """Set labels, delete them with `KEY=`, and print those that there are then."""
    stored = containers_of(app).records.label(id, parse_labels(labels))
    print_labels(stored.labels, as_json=as_json)


@containers.command()
@click.argument("ids", nargs=-1, required=True)
@pass_app
def rm(app: App, ids: tuple[str, ...]) -> None:
    """Remove containers that do not run; one that cannot be does not keep the others."""
    try:
        for_each(ids, containers_of(app).remove)
    finally:
        app.store.collect()  # layers of images that were removed meanwhile


def _plain(container: Container) -> dict[str, Any]:
    """Return what is recorded under containerd's JSON keys."""
    return {
        "ID": container.id,
        "Labels": dict(container.labels),
        "Image": container.image,
        "Runtime": {"Name": container.runtime},
        "SnapshotKey": container.snapshot_key,
        "Snapshotter": container.snapshotter,
        "CreatedAt": _time(container.created_ns),
        "UpdatedAt": _time(container.updated_ns),
    }


def _time(ns: int) -> str:
    whole = datetime.fromtimestamp(ns // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{whole}.{ns % 10**9:09d}Z"
