"""`lamina snapshots`: ctr's verbs on the snapshots of one snapshotter."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from lamina.cli.app import App, Group, parse_labels, pass_app, snapshotter_option
from lamina.cli.output import print_json, print_table, printable
from lamina.core.digest import parse_digest
from lamina.core.labels import GC_ROOT
from lamina.core.mount import Mount
from lamina.core.snapshot import Info
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

_COMPRESSIONS = {
    "application/vnd.oci.image.layer.v1.tar": "none",
    "application/vnd.oci.image.layer.v1.tar+gzip": "gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd": "zstd",
}

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(cls=Group, aliases=_ALIASES)
@snapshotter_option
@pass_app
def snapshots(app: App, snapshotter: str | None) -> None:
    """Work with snapshots directly."""
    app.snapshotter_option = snapshotter


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
@pass_app
def tree(app: App) -> None:
    """Show which snapshot stands on which."""
    children: dict[str, list[str]] = {}
    for info in app.snapshotter.walk():
        children.setdefault(info.parent, []).append(info.name)
    pending = [(0, name) for name in reversed(children.get("", []))]
    while pending:
        depth, name = pending.pop()
        indent = "  " * depth + "\\_" if depth else ""
        click.echo(f"{indent} {printable(name)}")
        pending += [(depth + 1, child) for child in reversed(children.get(name, []))]


@snapshots.command()
@click.argument("key")
@pass_app
def info(app: App, key: str) -> None:
    """Describe a snapshot as JSON."""
    print_json(_plain(app.snapshotter.stat(key)))


def _target_options(function: Callable[..., Any]) -> Callable[..., Any]:
    function = click.option("--mounts", "as_json", is_flag=True, help="Print the mounts as JSON.")(
        function
    )
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
    labels = {GC_ROOT: _now()}
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
@click.argument("target")
@click.argument("key")
@pass_app
def mounts(app: App, target: str, key: str) -> None:
    """Print the commands that mount KEY on TARGET."""
    _print_mounts(app.snapshotter.mounts(key), target, as_json=False)


@snapshots.command()
@click.argument("name")
@click.argument("active")
@pass_app
def commit(app: App, name: str, active: str) -> None:
    """Turn the snapshot ACTIVE into the committed one NAME."""
    app.snapshotter.commit(name, active, labels={GC_ROOT: _now()})


@snapshots.command()
@click.argument("key")
@click.argument("labels", nargs=-1, metavar="[KEY=VALUE]...")
@pass_app
def label(app: App, key: str, labels: tuple[str, ...]) -> None:
    """Set labels, delete them with `KEY=`, and print those that there are then."""
    stored = app.snapshotter.stat(key)
    if labels:
        changed = parse_labels(labels)
        paths = [f"labels.{name}" for name in changed]
        stored = app.snapshotter.update(stored._replace(labels=changed), *paths)
    click.echo(",".join(f"{name}={value}" for name, value in sorted(stored.labels.items())))


@snapshots.command()
@json_option
@click.option("-b", "in_bytes", is_flag=True, help="Print sizes in bytes.")
@click.argument("keys", nargs=-1)
@pass_app
def usage(app: App, as_json: bool, in_bytes: bool, keys: tuple[str, ...]) -> None:
    """Show what snapshots occupy by themselves, all of them unless KEYS are given."""
    names = keys or tuple(info.name for info in app.snapshotter.walk())
    used = [(name, app.snapshotter.usage(name)) for name in names]
    if as_json:
        print_json([{"Key": name, "Size": u.size, "Inodes": u.inodes} for name, u in used])
        return
    rows = (
        (name, str(u.size) if in_bytes else format_size(u.size), str(u.inodes)) for name, u in used
    )
    print_table(("KEY", "SIZE", "INODES"), rows)


@snapshots.command()
@click.argument("keys", nargs=-1, required=True)
@pass_app
def rm(app: App, keys: tuple[str, ...]) -> None:
    """Remove snapshots; stops at the first that cannot be."""
    for key in keys:
        app.snapshotter.remove(key)


@snapshots.command()
@click.option(
    "--media-type",
    type=click.Choice(list(_COMPRESSIONS)),
    default="application/vnd.oci.image.layer.v1.tar+gzip",
    show_default=True,
    help="Media type of the layer.",
)
@click.argument("key_a")
@click.argument("key_b", default="")
@pass_app
def diff(app: App, key_a: str, key_b: str, media_type: str) -> None:
    """Write a layer with what KEY_A changes in its parent, or what leads from KEY_A to KEY_B."""
    from lamina.formats.compression import Compression
    from lamina.layer.snapshot_diff import write_snapshot_diff

    write_snapshot_diff(
        app.snapshotter,
        key_b or key_a,
        sys.stdout.buffer.write,
        mounts=app.store.images.mounts,
        against=key_a if key_b else None,
        compression=Compression(_COMPRESSIONS[media_type]),
    )


@snapshots.command()
@click.option("--sync-fs", is_flag=True, help="Return when the snapshots survive power loss.")
@click.argument("digest")
@pass_app
def unpack(app: App, digest: str, sync_fs: bool) -> None:
    """Unpack the image whose manifest or index has that digest."""
    found = list(app.store.images.catalogue.walk([f"target.digest=={parse_digest(digest)}"]))
    if not found:
        raise NotFound("image of", digest, hint="lamina images ls shows the digests there are")
    app.store.unpack(found[0].name, app.snapshotter_option)
    if sync_fs:
        app.store.sync([app.snapshotter_option or app.store.default_snapshotter])
    click.echo(f"unpacking {digest} ({found[0].target.media_type})...done")


@snapshots.command()
@pass_app
def cleanup(app: App) -> None:
    """Free now what removed or abandoned snapshots, images and mounts still occupy."""
    if app.snapshotter_option is None:
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
        plain["Labels"] = dict(info.labels)
    plain["Created"] = info.created.isoformat().replace("+00:00", "Z")
    plain["Updated"] = info.updated.isoformat().replace("+00:00", "Z")
    return plain


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
