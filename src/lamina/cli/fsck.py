"""`lamina fsck`: whether records, disk and mounts agree, and what mends it where they do not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lamina.cli.app import App, Command, pass_app
from lamina.cli.output import json_option, print_json, printable
from lamina.errors import DataLoss

if TYPE_CHECKING:
    from lamina.core.problem import Problem
    from lamina.fsck import Outcome


@click.command(cls=Command)
@click.option("--repair", is_flag=True, help="Do what each line says that --repair does.")
@click.option("--deep", is_flag=True, help="Hash every blob, and read images of layers whole.")
@json_option
@pass_app
def fsck(app: App, repair: bool, deep: bool, as_json: bool) -> None:
    """Check images, content, snapshots, containers and mounts; print a line for each problem.

    A line says what is wrong, what --repair does about it, and what is left to do by hand. Nothing
    that may still be wanted is ever deleted. The exit code is 0 if no problem is left.
    """
    outcomes: list[Outcome] = []
    if repair:
        outcomes, left = app.store.repair(deep=deep)
    else:
        left = app.store.fsck(deep=deep)
    if as_json:
        print_json([*map(_plain_outcome, outcomes), *map(_plain, left)])
    else:
        for outcome in outcomes:
            click.echo(printable(_line(outcome)))
        for problem in left:
            click.echo(printable(str(problem)))
    if left:
        noun = "problem" if len(left) == 1 else "problems"
        raise DataLoss(f"check: {len(left)} {noun} in", app.root)


def _line(outcome: Outcome) -> str:
    problem, failure = outcome
    does = problem.repair.does if problem.repair else ""
    result = f"cannot be repaired: {failure}" if failure else f"repaired ({does})"
    parts = [f"{problem.subject}: {problem.what}", result]
    return "; ".join([*parts, problem.fix] if problem.fix and not failure else parts)


def _plain(problem: Problem) -> dict[str, object]:
    return {
        "Subject": problem.subject,
        "What": problem.what,
        "Repair": problem.repair.does if problem.repair else "",
        "Fix": problem.fix,
        "Repaired": False,
    }


def _plain_outcome(outcome: Outcome) -> dict[str, object]:
    plain = _plain(outcome.problem)
    return {**plain, "Repaired": not outcome.failure, "Failure": outcome.failure}
