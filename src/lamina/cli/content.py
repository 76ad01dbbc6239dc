"""`lamina content`: ctr's verbs on blobs."""

from __future__ import annotations

import re
import shutil
import time
from typing import TYPE_CHECKING

import click

from lamina.cli.app import App, Group, for_each, parse_labels, pass_app
from lamina.cli.output import (
    always_json_option,
    binary_input,
    binary_output,
    format_labels,
    format_time,
    json_option,
    print_json,
    print_labels,
    print_table,
)
from lamina.core.digest import parse_digest
from lamina.core.units import format_size

if TYPE_CHECKING:
    from lamina.meta.content import ContentInfo

_ALIASES = {"list": "ls", "delete": "rm", "del": "rm", "remove": "rm"}
_UNITS = (("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1))


@click.group(cls=Group, aliases=_ALIASES)
def content() -> None:
    """List, print, store, label and remove blobs."""


@content.command("ls")
@click.option("-q", "--quiet", is_flag=True, help="Print only the digests.")
@json_option
@click.argument("filters", nargs=-1)
@pass_app
def list_(app: App, quiet: bool, as_json: bool, filters: tuple[str, ...]) -> None:
    """List blobs, those that a filter such as `size==42` matches where any is given."""
    found = list(app.store.images.content.walk(filters))
    if as_json:
        print_json([_plain(info) for info in found])
    elif quiet:
        click.echo("".join(f"{info.digest}\n" for info in found), nl=False)
    else:
        now = time.time_ns()
        rows = (
            (i.digest, format_size(i.size), _age(now - i.created_ns), format_labels(i.labels))
            for i in found
        )
        print_table(("DIGEST", "SIZE", "AGE", "LABELS"), rows)


@content.command()
@always_json_option
@click.argument("digest")
@pass_app
def info(app: App, digest: str) -> None:
    """Describe a blob as JSON."""
    print_json(_plain(app.store.images.content.info(parse_digest(digest))))


@content.command()
@click.argument("digest")
@pass_app
def get(app: App, digest: str) -> None:
    """Write a blob to standard output."""
    with app.store.images.content.open(parse_digest(digest)) as blob:
        shutil.copyfileobj(blob, binary_output())


@content.command()
@click.option("--expected-size", type=click.IntRange(0), default=0, help="How large it must be.")
@click.option("--expected-digest", default="", metavar="DIGEST", help="What it must be.")
@click.argument("ref", metavar="KEY")
@pass_app
def ingest(app: App, ref: str, expected_size: int, expected_digest: str) -> None:
    """Store what standard input yields, as the ingest KEY until it is complete; print its digest.

    Label it `containerd.io/gc.root`, or the next collection takes it.
    """
    digest = app.store.images.content.ingest(
        ref,
        binary_input(),
        size=expected_size or None,
        digest=parse_digest(expected_digest) if expected_digest else None,
    )
    click.echo(digest)


@content.command()
@json_option
@click.argument("pattern", default="", metavar="[REGEXP]")
@pass_app
def active(app: App, pattern: str, as_json: bool) -> None:
    """List blobs that are not complete yet, those whose key matches where a pattern is given."""
    try:
        matches = re.compile(pattern).search
    except re.error as error:
        raise click.BadParameter(f"{pattern!r} is no regular expression: {error}") from error
    found = [ingest for ingest in app.store.images.content.ingests() if matches(ingest.ref)]
    if as_json:
        print_json([{"Ref": i.ref, "Offset": i.offset, "Total": i.total} for i in found])
        return
    now = time.time_ns()
    rows = ((i.ref, format_size(i.offset), _age(now - i.updated_ns)) for i in found)
    print_table(("REF", "SIZE", "AGE"), rows)


@content.command()
@json_option
@click.argument("digest")
@click.argument("labels", nargs=-1, metavar="[KEY=VALUE]...")
@pass_app
def label(app: App, digest: str, labels: tuple[str, ...], as_json: bool) -> None:
    """Set labels, delete them with `KEY=`, and print those that there are then."""
    store, parsed = app.store.images.content, parse_digest(digest)
    stored = store.label(parsed, parse_labels(labels)) if labels else store.info(parsed)
    print_labels(stored.labels, as_json=as_json)


@content.command()
@click.argument("digests", nargs=-1, required=True)
@pass_app
def rm(app: App, digests: tuple[str, ...]) -> None:
    """Remove blobs, even those that an image needs: the next pull of it gets them anew."""

    def remove(digest: str) -> None:
        app.store.images.content.delete(parse_digest(digest))
        click.echo(digest)

    for_each(digests, remove)


@content.group()
def prune() -> None:
    """Free what unpacked images can do without."""


@prune.command()
@click.option("--async", "later", is_flag=True, help="Leave the blobs to the next collection.")
@click.option("--dry", is_flag=True, help="Only print what would go.")
@json_option
@pass_app
def references(app: App, later: bool, dry: bool, as_json: bool) -> None:
    """Let images give up the blobs of their layers; what is unpacked stays, and runs.

    Prints the digests of those layers. To export such an image, or to unpack it elsewhere, pull it
    again.
    """
    from lamina.images.pruning import drop_layer_references

    dropped = drop_layer_references(app.store.images, dry=dry)
    if not dry and not later:
        app.store.collect()
    if as_json:
        print_json(dropped)
    else:
        click.echo("".join(f"{digest}\n" for digest in dropped), nl=False)


def _plain(info: ContentInfo) -> dict[str, object]:
    return {
        "Digest": info.digest,
        "Size": info.size,
        "CreatedAt": format_time(info.created_ns),
        "UpdatedAt": format_time(info.updated_ns),
        "Labels": dict(info.labels),
    }


def _age(ns: int) -> str:
    """Return a time span in its largest unit: `3 hours`."""
    seconds = max(ns // 10**9, 0)
    name, length = next((unit for unit in _UNITS if seconds >= unit[1]), _UNITS[-1])
    count = seconds // length
    return f"{count} {name}{'' if count == 1 else 's'}"
