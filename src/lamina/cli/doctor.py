"""`lamina doctor`: what works on this machine, what does not and why, and what would mend it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from lamina.cli.app import App, Command, pass_app
from lamina.cli.output import json_option, print_aligned, print_json, printable
from lamina.errors import ConfigError, FailedPrecondition, LaminaError

if TYPE_CHECKING:
    from lamina.config import Config
    from lamina.doctor import Backend, Finding
    from lamina.store import Store


@click.command(cls=Command)
@json_option
@pass_app
def doctor(app: App, as_json: bool) -> None:
    """Tell what each snapshotter needs, what was tried, and which is the best for this root.

    Everything is tried for real where it would be used, and taken back. The exit code is 0 if a
    snapshotter works and nothing is broken.
    """
    from lamina.config import Config
    from lamina.doctor import Level, best_of, examine_backends

    try:
        config, faults = app.config, ""
    except LaminaError as error:
        config, faults = Config(), _faults(error)
    if faults:
        app.config = config  # so that the rest can be examined
    findings = list(_findings(app, config, faults))
    backends = examine_backends(app.root, config)
    best = best_of(backends)
    if as_json:
        print_json(_plain(findings, backends, best))
    else:
        _print(findings, backends, best)
    broken = [finding.name for finding in findings if finding.level is Level.BAD]
    broken += [backend.status.id for backend in backends if backend.status.status == "error"]
    if best is None:
        broken.append("no snapshotter works")
    if broken:
        raise FailedPrecondition(f"doctor: broken: {', '.join(broken)}")


def _findings(app: App, config: Config, faults: str) -> Iterator[Finding]:
    from lamina.config.containerd import CONTAINERD_CONFIG
    from lamina.doctor import Finding, Level, examine_containerd, examine_machine, examine_place

    yield from examine_machine(os.environ.get("PATH") or os.defpath)
    store = None
    try:
        store = _opened(app)
    except LaminaError as error:
        yield Finding("store", Level.BAD, _reason(error), error.hint)
    yield from examine_place(app.root, store)
    if faults:
        fix = "correct the file; what follows is true of the defaults"
        yield Finding("configuration", Level.BAD, faults, fix)
    else:
        what = f"{config.path} is in order" if config.path else "no file: all defaults"
        yield Finding("configuration", Level.OK, what)
    yield examine_containerd(CONTAINERD_CONFIG, config.daemon.grpc.address)


def _opened(app: App) -> Store | None:
    """Open the store where there is one; an examination makes none."""
    from lamina.doctor.place import holds_store

    return app.store if holds_store(app.root) else None


def _faults(error: LaminaError) -> str:
    return "; ".join(error.problems) if isinstance(error, ConfigError) else _reason(error)


def _reason(error: LaminaError) -> str:
    return str(error).removesuffix(f"; {error.hint}")


def _print(findings: list[Finding], backends: list[Backend], best: Backend | None) -> None:
    lines: list[list[str]] = []
    for finding in findings:
        lines.append([str(finding.level), finding.name, finding.detail])
        lines += [["", "", f"fix: {finding.fix}"]] if finding.fix else []
    lines.append([""])
    for backend in backends:
        lines += _lines(backend)
    lines.append([""])
    if best is not None:
        lines.append([f"Best here: {best.status.id}: {best.merit or 'it works'}"])
    print_aligned([[printable(cell) for cell in line] for line in lines], padding=2)


def _lines(backend: Backend) -> Iterator[list[str]]:
    status = backend.status
    yield [status.status, status.id, backend.reason or "its driver was loaded, and works"]
    if backend.fix:
        yield ["", "", f"fix: {backend.fix}"]
    for need, reason in backend.trials:
        result = f"no: {reason}" if reason else "yes"
        yield ["", "", f"needs {need.what}: {result} (tried to {need.tried})"]
        if reason:
            lacking = f"without it, {need.without}; " if need.without else ""
            yield ["", "", f"  {lacking}fix: {need.fix}"]


def _plain(
    findings: list[Finding], backends: list[Backend], best: Backend | None
) -> dict[str, object]:
    return {
        "Findings": [
            {"Name": f.name, "Level": str(f.level), "Detail": f.detail, "Fix": f.fix}
            for f in findings
        ],
        "Snapshotters": [_plain_backend(backend) for backend in backends],
        "Best": {"ID": best.status.id, "Why": best.merit} if best else None,
    }


def _plain_backend(backend: Backend) -> dict[str, object]:
    return {
        "ID": backend.status.id,
        "Status": backend.status.status,
        "Reason": backend.reason,
        "Fix": backend.fix,
        "Needs": [
            {
                "What": need.what,
                "Tried": need.tried,
                "Met": not reason,
                "Reason": reason,
                "Without": need.without,
                "Fix": need.fix if reason else "",
            }
            for need, reason in backend.trials
        ],
    }
