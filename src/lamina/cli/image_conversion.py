"""`lamina images convert|optimize`: ctr's verb that makes images lazy, and stargz-snapshotter's."""

from __future__ import annotations

import os
import shlex
import time
from itertools import chain
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from lamina.cli.app import App, Command, pass_app, snapshotter_option
from lamina.cli.conversion_options import conversion_options, convert_options
from lamina.cli.conversion_report import plain_converted, plain_optimized, print_optimized, summary
from lamina.cli.image_recording import (
    Found,
    check_record_out,
    files_of_record,
    files_of_run,
    recording_options,
    write_record_out,
)
from lamina.cli.output import json_option, print_json, say
from lamina.cli.run import container_options, exit_code_of, spec_options

if TYPE_CHECKING:
    from collections.abc import Callable

    from lamina.images.conversion import Converted
    from lamina.images.conversion_nydus import NydusLayer
    from lamina.images.conversion_overlaybd import OverlaybdLayer
    from lamina.runtime.request import RunRequest
    from lamina.runtime.spec import SpecOptions


@click.command(cls=Command)
@conversion_options
@click.option(
    "--optimize",
    "command",
    metavar="COMMAND",
    help="Run this in SOURCE, for 10 seconds at most, and put the files first that it reads.",
)
@json_option
@click.argument("source")
@click.argument("target")
@pass_app
def convert(app: App, /, source: str, target: str, command: str | None, **given: Any) -> int:
    """Make an image TARGET of SOURCE that can be used before it is fetched.

    The blobs of SOURCE have to be here; nothing is unpacked, but for --optimize.
    """
    if command is None and given["record_in"] is None:
        _convert(app, source, target, given)
        return 0
    if command is None:
        return _optimize(app, source, target, given, None)
    if given["record_in"] is not None:
        raise click.UsageError("--optimize and --record-in cannot be used together")
    words = _words(command)
    return _optimize(app, source, target, given, lambda: _run_plainly(app, source, words, given))


@click.command(cls=Command)
@conversion_options
@recording_options
@container_options
@snapshotter_option
@json_option
@click.argument("source")
@click.argument("target")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-- COMMAND [ARG]...]")
@pass_app
def optimize(app: App, /, source: str, target: str, command: tuple[str, ...], **given: Any) -> int:
    """Make an image TARGET of SOURCE that has first what its start reads.

    A container of SOURCE is run to learn which files these are, or --record-in names them. Without
    COMMAND it runs the image's own.
    """
    if given["record_in"] is not None:
        _refuse_run_options()
        return _optimize(app, source, target, given, None)
    app.snapshotter_option = given["snapshotter"]
    options = spec_options(given, list(command))
    return _optimize(
        app,
        source,
        target,
        given,
        lambda: files_of_run(
            app,
            source,
            _request(given, options),
            period=given["period"],
            line=given["wait_on_line"],
            on_signal=given["wait_on_signal"],
        ),
    )


def _convert(app: App, source: str, target: str, given: dict[str, Any]) -> None:
    from lamina.cli.progress import shown_progress

    for name in ("record_out", "prioritized_chunk_size"):
        if given[name]:
            option = f"--{name.replace('_', '-')}"
            raise click.UsageError(f"{option} needs --optimize or --record-in")
    started = time.monotonic()
    options = convert_options(given)
    with shown_progress(quiet=given["quiet"]) as progress:
        converted = app.store.convert(
            source, target, options=options, progress=progress, sync=given["sync_fs"]
        )
    _say_kept(converted)
    if given["as_json"]:
        print_json(plain_converted(converted))
    elif not given["quiet"]:
        click.echo(summary(converted, time.monotonic() - started))


def _optimize(
    app: App,
    source: str,
    target: str,
    given: dict[str, Any],
    record: Callable[[], Found] | None,
) -> int:
    """Optimize with what a run reads, or with a record where there is none."""
    from lamina.cli.progress import shown_progress
    from lamina.image_optimization import check_optimization, optimize_image

    options = convert_options(given)
    check_optimization(app.store, source, target, options)
    check_record_out(given["record_out"])

    def optimize() -> int:
        found = record() if record else files_of_record(app, source, given["record_in"])
        write_record_out(given["record_out"], found)
        started = time.monotonic()
        with shown_progress(quiet=given["quiet"]) as progress:
            optimized = optimize_image(
                app.store,
                source,
                target,
                found.image,
                found.files,
                options,
                progress=progress,
                sync=given["sync_fs"],
            )
        _say_kept(optimized.converted)
        if given["as_json"]:
            print_json(plain_optimized(found, optimized))
        elif not given["quiet"]:
            print_optimized(optimized)
            click.echo(summary(optimized.converted, time.monotonic() - started))
        return 0

    return exit_code_of(optimize)


def _words(command: str) -> list[str]:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise click.UsageError(f"--optimize {command!r}: {error}") from error
    if not words:
        raise click.UsageError("--optimize is empty: give a command")
    return words


def _run_plainly(app: App, source: str, words: list[str], given: dict[str, Any]) -> Found:
    from lamina.runtime import cgroup
    from lamina.runtime.spec import SpecOptions

    options = SpecOptions(args=words, cgroup_namespace=cgroup.unified())
    return files_of_run(app, source, _request(given, options))


def _request(given: dict[str, Any], options: SpecOptions) -> RunRequest:
    from lamina.runtime.oci_runtime import find_runtime
    from lamina.runtime.request import RunRequest

    search_path = os.environ.get("PATH") or os.defpath
    return RunRequest(
        id="",
        runtime=find_runtime(given.get("runtime", ""), search_path),
        options=options,
        null_io=given.get("null_io", False),
        no_pivot=given.get("no_pivot", False),
        cgroup=given.get("cgroup", ""),
        # What is printed as JSON stays readable as such.
        stdout=2 if given["as_json"] else None,
    )


def _refuse_run_options() -> None:
    """Refuse what only a run would heed: whatever `convert` does not take as well."""
    context = click.get_current_context()
    heeded = {param.name for param in convert.params} - {"command"}
    for param in context.command.params:
        name = param.name or ""
        if name in heeded or context.get_parameter_source(name) != ParameterSource.COMMANDLINE:
            continue
        if isinstance(param, click.Option):
            raise click.UsageError(f"--record-in runs nothing: leave out {param.opts[0]}")
        if context.params[name]:
            raise click.UsageError("--record-in runs nothing: leave out the command")


def _say_kept(converted: Converted) -> None:
    for layer in converted.layers:
        if layer.kept:
            say(f"layer {layer.source.digest} stays as it is: {layer.kept}")
    made: tuple[NydusLayer | OverlaybdLayer, ...] = (*converted.nydus, *converted.overlaybd)
    for warning in chain.from_iterable(layer.warnings for layer in made):
        say(warning)
