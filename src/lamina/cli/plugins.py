"""`lamina plugins`: which snapshotters there are and whether they work here."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import click

from lamina.cli.app import App, Group, pass_app
from lamina.cli.output import print_aligned, print_json, print_table, printable
from lamina.errors import LaminaError

if TYPE_CHECKING:
    from lamina.plugins import PluginStatus

# Go's names of the gRPC codes, by number.
_CODES = (
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
)


@click.group(cls=Group, aliases={"list": "ls"})
def plugins() -> None:
    """List snapshotters and whether they work here."""


@plugins.command("ls")
@click.option("-q", "--quiet", is_flag=True, help="Print only the ids.")
@click.option("-d", "--detailed", is_flag=True, help="Print why one does not work, and the fix.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.argument("filters", nargs=-1)
@pass_app
def list_(app: App, quiet: bool, detailed: bool, as_json: bool, filters: tuple[str, ...]) -> None:
    """List snapshotters, those that a filter such as `status==ok` matches where any is given."""
    from lamina.plugins import plugins as statuses

    everything = bool(detailed or as_json or filters)
    shown = _matching(statuses(app.root, app.config, capabilities=everything), filters)
    if as_json:
        print_json([_plain(plugin) for plugin in shown])
    elif quiet:
        click.echo("".join(f"{plugin.id}\n" for plugin in shown), nl=False)
    elif detailed:
        print_aligned(_details(shown), min_width=4, padding=4)
    else:
        columns = ("TYPE", "ID", "PLATFORMS", "STATUS")
        rows = ((p.type, p.id, ",".join(p.platforms) or "-", p.status) for p in shown)
        print_table(columns, rows, min_width=4, padding=4)


def _matching(statuses: list[PluginStatus], filters: tuple[str, ...]) -> list[PluginStatus]:
    if not filters:
        return statuses
    from lamina.core.filters import parse

    matches = parse(filters)
    return [plugin for plugin in statuses if matches(partial(_field, plugin))]


def _field(plugin: PluginStatus, path: tuple[str, ...]) -> str | None:
    """Answer a filter: containerd's fields, and `status`."""
    fields = {
        "type": plugin.type,
        "id": plugin.id,
        "platforms": ",".join(plugin.platforms),
        "capabilities": ",".join(plugin.capabilities),
        "status": plugin.status,
    }
    return fields.get(".".join(path))


def _details(statuses: list[PluginStatus]) -> list[list[str]]:
    """Return ctr's blocks, each value behind a space, with `Fix:` where there is one."""
    lines: list[list[str]] = []
    for plugin in statuses:
        if lines:
            lines.append(["", "", "", ""])
        lines += [["Type:", f" {plugin.type}"], ["ID:", f" {plugin.id}"]]
        if plugin.platforms:
            lines.append(["Platforms:", f" {','.join(plugin.platforms)}"])
        if plugin.exports:
            lines.append(["Exports:", ""])
            lines += [["", f" {key}", f" {value}"] for key, value in plugin.exports.items()]
        if plugin.capabilities:
            lines.append(["Capabilities:", f" {','.join(plugin.capabilities)}"])
        if plugin.error is not None:
            lines += _error_lines(plugin.error)
    return [[printable(cell) for cell in line] for line in lines]


def _error_lines(error: LaminaError) -> list[list[str]]:
    reason, fix = _reason_and_fix(error)
    lines = [
        ["Error:", ""],
        ["", " Code:", f" {_CODES[error.grpc_code]}"],
        ["", " Message:", f" {reason}"],
    ]
    return [*lines, ["", " Fix:", f" {fix}"]] if fix else lines


def _reason_and_fix(error: LaminaError) -> tuple[str, str]:
    return str(error).removesuffix(f"; {error.hint}"), error.hint


def _plain(plugin: PluginStatus) -> dict[str, object]:
    plain: dict[str, object] = {
        "Type": plugin.type,
        "ID": plugin.id,
        "Platforms": list(plugin.platforms),
        "Status": plugin.status,
        "Exports": dict(plugin.exports),
        "Capabilities": list(plugin.capabilities),
    }
    if plugin.error is not None:
        reason, fix = _reason_and_fix(plugin.error)
        plain["Error"] = {"Code": _CODES[plugin.error.grpc_code], "Message": reason, "Fix": fix}
    return plain
