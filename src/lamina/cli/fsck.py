"""`lamina fsck`: whether everything recorded is on the disk, and nothing else."""

from __future__ import annotations

import click

from lamina.cli.app import App, Command, pass_app
from lamina.cli.output import print_json, printable
from lamina.errors import DataLoss


@click.command(cls=Command)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@pass_app
def fsck(app: App, as_json: bool) -> None:
    """Check images, content, snapshots and mounts; print a line for each problem.

    The exit code is 0 if there is none. Blobs are measured, not read.
    """
    problems = app.store.fsck()
    if as_json:
        print_json([{"Subject": p.subject, "What": p.what, "Fix": p.fix} for p in problems])
    else:
        for problem in problems:
            click.echo(printable(str(problem)))
    if problems:
        raise DataLoss(f"check: {len(problems)} problems in", app.root)
