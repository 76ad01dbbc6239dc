"""`lamina snapshots`: ctr's verbs on the snapshots of one snapshotter, here or a daemon's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from lamina.cli.app import App, parse_labels, pass_app
from lamina.cli.lazy_shrink import shrink
from lamina.cli.output import (
    always_json_option,
    json_option,
    now,
    print_json,
    print_labels,
    print_table,
    printable,
)
from lamina.cli.snapshot_layers import diff, export, unpack
from lamina.cli.snapshot_options import Verbs
from lamina.core.labels import GC_ROOT
from lamina.core.mount import Mount
from lamina.core.snapshot import Info, Usage
from lamina.core.units import format_size
from lamina.errors import NotFound

_ALIASES = {
    "list": "ls",
    "delete": "rm",
    "del": "rm",
    "remove": "rm",
    "mount": "mounts",
    "m": "mounts",
}


@click.group(cls=Verbs, aliases=_ALIASES)
def snapshots() -> None:
    """Work with snapshots directly, with those of a daemon too."""


snapshots.add_command(diff)
snapshots.add_command(export)
snapshots.add_command(unpack)
snapshots.add_command(shrink)


@snapshots.command("ls")
@json_option
@click.argument("filters", nargs=-1)
@pass_app
def list_(app: App, as_json: bool, filters: tuple[str, ...]) -> None:
    """List snapshots, those that a filter matches where any is given."""
    infos = list(app.snapshotter.walk(filters))
    if as_json:
        print_json([_plain(info) for info in infos])
        return
    print_table(("KEY", "PARENT", "KIND"), ((i.name, i.parent, str(i.kind)) for i in infos))


@snapshots.command()
@json_option
@pass_app
def tree(app: App, as_json: bool) -> None:
    """Show which snapshot stands on which."""
    nodes = list(_in_tree_order(app.snapshotter.walk()))
    if as_json:
        print_json([{**_plain(info), "Depth": depth} for depth, info in nodes])
        return
    for depth, info in nodes:
        indent = "  " * depth + "\\_" if depth else ""
        click.echo(f"{indent} {printable(info.name)}")


def _in_tree_order(infos: Iterable[Info]) -> Iterator[tuple[int, Info]]:
    """Yield every snapshot behind its parent, with the number of those below it."""
    children: dict[str, list[Info]] = {}
    for info in infos:
        children.setdefault(info.parent, []).append(info)
    pending = [(0, info) for info in reversed(children.get("", []))]
    while pending:
        depth, info = pending.pop()
        yield depth, info
        pending += [(depth + 1, child) for child in reversed(children.get(info.name, []))]


@snapshots.command()
@always_json_option
@click.argument("key")
@pass_app
def info(app: App, key: str) -> None:
    """Describe a snapshot as JSON."""
    print_json(_plain(app.snapshotter.stat(key)))


def _target_options(function: Callable[..., Any]) -> Callable[..., Any]:
    function = click.option(
        "--mounts", "--json", "as_json", is_flag=True, help="Print the mounts as JSON."
    )(function)
    return click.option(
        "-t", "--target", metavar="DIR", help="Print the mount commands for that directory."
    )(function)


@snapshots.command()
@_target_options
@click.argument("key")
@click.argument("parent", default="")
@pass_app
def prepare(app: App, key: str, parent: str, target: str | None, as_json: bool) -> None:
    """Make a writable snapshot on top of PARENT (a committed one), or an empty one."""
    labels = {GC_ROOT: now()}
    _print_mounts(app.snapshotter.prepare(key, parent, labels=labels), target, as_json)


@snapshots.command()
@_target_options
@click.argument("key")
@click.argument("parent", default="")
@pass_app
def view(app: App, key: str, parent: str, target: str | None, as_json: bool) -> None:
    """Make a read-only snapshot of PARENT."""
    _print_mounts(app.snapshotter.view(key, parent), target, as_json)


@snapshots.command()
@_target_options
@click.argument("key")
@click.argument("new")
@pass_app
def fork(app: App, key: str, new: str, target: str | None, as_json: bool) -> None:
    """Copy the writable snapshot KEY, mounted or not, as the writable snapshot NEW."""
    labels = {GC_ROOT: now()}
    _print_mounts(app.snapshotter.fork(key, new, labels=labels), target, as_json)


@snapshots.command()
@json_option
@click.argument("target")
@click.argument("key")
@pass_app
def mounts(app: App, target: str, key: str, as_json: bool) -> None:
    """Print the commands that mount KEY on TARGET."""
    _print_mounts(app.snapshotter.mounts(key), target, as_json)


@snapshots.command()
@click.argument("name")
@click.argument("active")
@pass_app
def commit(app: App, name: str, active: str) -> None:
    """Turn the snapshot ACTIVE into the committed one NAME."""
    app.snapshotter.commit(name, active, labels={GC_ROOT: now()})


@snapshots.command()
@json_option
@click.argument("key")
@click.argument("labels", nargs=-1, metavar="[KEY=VALUE]...")
@pass_app
def label(app: App, key: str, labels: tuple[str, ...], as_json: bool) -> None:
    """Set labels, delete them with `KEY=`, and print those that there are then."""
    snapshotter = app.snapshotter
    if labels:
        changed = parse_labels(labels)
        paths = [f"labels.{name}" for name in changed]
        stored = snapshotter.update(Info(key, labels=changed), *paths)
    else:
        stored = snapshotter.stat(key)
    print_labels(stored.labels, as_json=as_json)


@snapshots.command()
@json_option
@click.option("-b", "in_bytes", is_flag=True, help="Print sizes in bytes.")
@click.argument("keys", nargs=-1)
@pass_app
def usage(app: App, as_json: bool, in_bytes: bool, keys: tuple[str, ...]) -> None:
    """Show what snapshots occupy by themselves, all of them unless KEYS are given."""
    used = list(_used(app, keys))
    if as_json:
        print_json([{"Key": name, "Size": u.size, "Inodes": u.inodes} for name, u in used])
        return
    rows = (
        (name, str(u.size) if in_bytes else format_size(u.size), str(u.inodes)) for name, u in used
    )
    print_table(("KEY", "SIZE", "INODES"), rows)


def _used(app: App, keys: tuple[str, ...]) -> Iterator[tuple[str, Usage]]:
    snapshotter = app.snapshotter
    if keys:
        yield from ((key, snapshotter.usage(key)) for key in keys)
        return
    for info in list(snapshotter.walk()):
        try:
            usage = snapshotter.usage(info.name)
        except NotFound:  # removed since it was listed
            continue
        yield info.name, usage


@snapshots.command()
@click.argument("keys", nargs=-1, required=True)
@pass_app
def rm(app: App, keys: tuple[str, ...]) -> None:
    """Remove snapshots; stops at the first that cannot be."""
    for key in keys:
        app.snapshotter.remove(key)


@snapshots.command()
@pass_app
def cleanup(app: App) -> None:
    """Free now what removed or abandoned snapshots, images and mounts still occupy."""
    if app.snapshotter_option is None and app.address_option is None:
        app.store.cleanup()
    else:
        app.snapshotter.cleanup()


def _print_mounts(mounts: Iterable[Mount], target: str | None, as_json: bool) -> None:
    if as_json:
        print_json(
            [
                {
                    "Type": mount.type,
                    "Source": mount.source,
                    "Target": mount.target,
                    "Options": list(mount.options),
                }
                for mount in mounts
            ]
        )
    elif target is not None:
        for mount in mounts:
            click.echo(mount.command(str(Path(target))))


def _plain(info: Info) -> Mapping[str, object]:
    """Return the description under containerd's JSON keys, empty ones left out as there."""
    plain: dict[str, object] = {"Kind": str(info.kind), "Name": info.name}
    if info.parent:
        plain["Parent"] = info.parent
    if info.labels:
        plain["Labels"] = dict(sorted(info.labels.items()))
    plain["Created"] = info.created.isoformat().replace("+00:00", "Z")
    plain["Updated"] = info.updated.isoformat().replace("+00:00", "Z")
    return plain
