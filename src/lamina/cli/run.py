"""`lamina run`: make a container of an image and run it, with ctr's flags."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lamina.cli.app import App, Command, parse_labels, pass_app, snapshotter_option
from lamina.core.units import parse_size
from lamina.errors import NotFound

if TYPE_CHECKING:
    from lamina.images.operation import Options
    from lamina.meta.launches import Launch
    from lamina.runtime.containers import Containers
    from lamina.runtime.request import RunRequest
    from lamina.runtime.spec import SpecOptions

_FILE = click.Path(path_type=Path, dir_okay=False)


def containers_of(app: App) -> Containers:
    """Return the containers of the command's store."""
    from lamina.runtime.containers import Containers

    store = app.store
    return Containers(store.containers, store.root / "containers", store.snapshotter)


def exit_code_of(run: Callable[[], int]) -> int:
    """Return the exit code of a container's process.

    Where it could not be started and shared this command's standard error, the runtime has said
    why there; to say it again would make two lines of one error.
    """
    from lamina.runtime.oci_runtime import StartFailed

    try:
        return run()
    except StartFailed as error:
        if not error.shown:
            raise
        return error.exit_code


def _flag(*names: str, help: str) -> Callable[[Any], Any]:
    return click.option(*names, is_flag=True, help=help)


def _list(*names: str, help: str, metavar: str) -> Callable[[Any], Any]:
    return click.option(*names, multiple=True, help=help, metavar=metavar)


def _text(*names: str, help: str, metavar: str, default: Any = "") -> Callable[[Any], Any]:
    return click.option(*names, default=default, help=help, metavar=metavar)


def _number(*names: str, type: type, help: str) -> Callable[[Any], Any]:
    return click.option(*names, type=type, default=0, help=help)


_LIFE = (
    _flag("--rm", help="Remove the container once it has ended."),
    _flag("-d", "--detach", help="Return when the container is started."),
    _text("--log-uri", metavar="file://PATH", help="Append a detached container's output to PATH."),
    _text("--pid-file", metavar="FILE", default=None, help="Write the process id to FILE."),
    _list("--label", metavar="KEY=VALUE", help="Set a label of the container."),
    _list("--snapshotter-label", metavar="KEY=VALUE", help="Set a label of its snapshot."),
    _text("--platform", metavar="OS/ARCH", default=None, help="Run the image of that platform."),
    _flag("--rootfs", help="The argument is a directory to use as root, not an image."),
    click.option("-c", "--spec", type=_FILE, help="Use this OCI config.json; give only the id."),
)
_CONTAINER = (
    _flag("-t", "--tty", help="Give it a terminal."),
    _flag("--null-io", help="Connect its standard streams to /dev/null."),
    _list("--env", metavar="NAME=VALUE", help="Set an environment variable; NAME unsets it."),
    click.option("--env-file", type=_FILE, help="Read environment variables, one on a line."),
    _list("--mount", metavar="type=,src=,dst=,options=", help="Add a mount; options apart by `:`."),
    _text("--user", metavar="USER[:GROUP]", default=None, help="Run as this user of the image."),
    _text("--cwd", metavar="DIR", help="Working directory."),
    _text("--entrypoint", metavar="PROGRAM", default=None, help="Replace the image's entrypoint."),
    _flag("--read-only", help="Make the root file system read-only."),
    _flag("--privileged", help="All capabilities and devices, nothing masked."),
    _flag("--allow-new-privs", help="Let set-user-ID programs gain privileges."),
    _list("--cap-add", metavar="CAP", help="Add a capability."),
    _list("--cap-drop", metavar="CAP", help="Take a capability away."),
    _list("--device", metavar="PATH", help="Add a device, or all those in a directory."),
    _text("--hostname", metavar="NAME", help="Name of the host that the container sees."),
    _flag("--net-host", help="Stay in the host's network."),
    _list("--with-ns", metavar="TYPE:PATH", help="Join an existing namespace."),
    _list("--uidmap", metavar="C:H:N", help="Map N user ids from C on to those from H on."),
    _list("--gidmap", metavar="C:H:N", help="The same for group ids."),
    _flag("--remap-labels", help="Map ids by labels of the snapshot; always so here."),
    _text("--memory-limit", metavar="SIZE", default="0", help="Limit of memory, such as 256MiB."),
    _number("--cpus", type=float, help="How many CPUs' worth of time it may use."),
    _number("--cpu-shares", type=int, help="Relative weight of its CPU time."),
    _number("--cpu-quota", type=int, help="Microseconds of CPU time in each period."),
    _number("--cpu-period", type=int, help="Length of the period in microseconds."),
    _text("--cgroup", metavar="PATH", help="Path of its cgroup."),
    _list("--annotation", metavar="KEY=VALUE", help="Set an annotation in its specification."),
    _text("--runtime", metavar="PATH", help="OCI runtime.  [default: runc, else crun]"),
    click.option("--runc-binary", "runtime", hidden=True),
    _flag("--no-pivot", help="Do not use pivot_root, for a root on a ramdisk."),
    _text("--rootfs-propagation", metavar="MODE", help="Propagation of mounts of the root."),
    click.option("--seccomp-profile", type=_FILE, help="Apply the seccomp profile in this file."),
    _text("--apparmor-profile", metavar="NAME", help="Apply a loaded AppArmor profile."),
)


def container_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say what a container is like, for `spec_options`."""
    for option in reversed(_CONTAINER):
        function = option(function)
    return function


def _life_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_LIFE):
        function = option(function)
    return function


@click.command(cls=Command, context_settings={"allow_interspersed_args": False})
@_life_options
@container_options
@snapshotter_option
@click.argument("words", nargs=-1, required=True, metavar="IMAGE|DIR ID [COMMAND [ARG]...]")
@pass_app
def run(app: App, /, words: tuple[str, ...], snapshotter: str | None, **given: Any) -> int:
    """Run a container.

    The exit code is the container's, 128 + N when signal N killed it.
    """
    if given["rm"] and given["detach"]:
        raise click.UsageError("--rm and --detach cannot be used together")
    if given["log_uri"] and not given["detach"]:
        raise click.UsageError("--log-uri needs --detach: otherwise the output is this command's")
    app.snapshotter_option = snapshotter
    request = _request(app, words, given)
    return exit_code_of(lambda: containers_of(app).run(request))


def _request(app: App, words: tuple[str, ...], given: dict[str, Any]) -> RunRequest:
    from lamina.runtime.oci_runtime import find_runtime
    from lamina.runtime.request import RunRequest

    search_path = os.environ.get("PATH") or os.defpath
    common: dict[str, Any] = {
        "runtime": find_runtime(given["runtime"], search_path),
        "throw_away": given["rm"],
        "detach": given["detach"],
        "null_io": given["null_io"],
        "no_pivot": given["no_pivot"],
        "cgroup": given["cgroup"],
        "labels": parse_labels(given["label"]),
        "output": _output(given["log_uri"]),
        "pid_file": Path(given["pid_file"]).absolute() if given["pid_file"] else None,
        "forward_signals": True,
    }
    if given["spec"]:
        if len(words) != 1:
            raise click.UsageError("with --spec, give only the container's id")
        return RunRequest(id=words[0], spec=_own_spec(given["spec"]), **common)
    if len(words) < 2:
        raise click.UsageError("give an image (or with --rootfs a directory) and a container id")
    source, id, *args = words
    common["options"] = spec_options(given, args)
    if given["rootfs"]:
        return RunRequest(id=id, rootfs=Path(source).absolute(), **common)
    name, launch = find_launch(app, source, given["platform"])
    return RunRequest(
        id=id,
        image=source,
        process=launch.process,
        snapshotter=name,
        parent=launch.chain_id,
        snapshot_labels=parse_labels(given["snapshotter_label"]),
        **common,
    )


def find_launch(app: App, reference: str, platform: str | None) -> tuple[str, Launch]:
    """Return the snapshotter that has the image's layers, now at the latest, and how to run it."""
    name = app.snapshotter_option or app.store.default_snapshotter
    launch = app.store.launch(reference, platform)
    if launch.chain_id:
        try:
            app.store.snapshotter(name).stat(launch.chain_id)
        except NotFound:
            app.store.unpack(reference, name, options=_unpack_options(platform))
    return name, launch


def _unpack_options(platform: str | None) -> Options | None:
    if platform is None:
        return None
    from lamina.images.operation import Options
    from lamina.images.platform import parse_platform

    return Options(platforms=(parse_platform(platform),))


def spec_options(given: dict[str, Any], args: list[str]) -> SpecOptions:
    """Return what the options, with the container's command, ask for."""
    from lamina.core.idmap import parse_idmap
    from lamina.runtime import cgroup
    from lamina.runtime.mounts import parse_mount
    from lamina.runtime.namespaces import parse_namespace
    from lamina.runtime.spec import Resources, SpecOptions

    labels = parse_labels(given.get("label", ()))
    return SpecOptions(
        args=args,
        entrypoint=None if given["entrypoint"] is None else [given["entrypoint"]],
        env=[*_env_file(given["env_file"]), *given["env"]],
        cwd=given["cwd"],
        user=given["user"],
        terminal=given["tty"],
        console_size=_console_size() if given["tty"] else None,
        hostname=given["hostname"],
        read_only=given["read_only"],
        privileged=given["privileged"],
        allow_new_privileges=given["allow_new_privs"],
        cap_add=given["cap_add"],
        cap_drop=given["cap_drop"],
        mounts=[parse_mount(text) for text in given["mount"]],
        devices=given["device"],
        host_network=given["net_host"],
        host_name=os.uname().nodename,
        joined_namespaces=dict(parse_namespace(text) for text in given["with_ns"]),
        uid_maps=[ids for text in given["uidmap"] for ids in parse_idmap(text)],
        gid_maps=[ids for text in given["gidmap"] for ids in parse_idmap(text)],
        annotations={**labels, **parse_labels(given["annotation"])},
        resources=Resources(
            memory_limit=parse_size(given["memory_limit"]),
            cpus=given["cpus"],
            cpu_shares=given["cpu_shares"],
            cpu_quota=given["cpu_quota"],
            cpu_period=given["cpu_period"],
        ),
        cgroup_namespace=cgroup.unified(),
        rootfs_propagation=given["rootfs_propagation"],
        apparmor_profile=given["apparmor_profile"],
        seccomp=_json_file(given["seccomp_profile"]) if given["seccomp_profile"] else None,
    )


def _console_size() -> tuple[int, int] | None:
    if not sys.stdin.isatty():
        return None
    size = os.get_terminal_size(sys.stdin.fileno())
    return size.lines, size.columns


def _env_file(path: Path | None) -> list[str]:
    """Return the lines that are neither empty nor comments."""
    if path is None:
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"cannot read environment file {path}: {error}") from error
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def _own_spec(path: Path) -> dict[str, Any]:
    """Return the user's specification, its root file system as an absolute path."""
    spec = _json_file(path)
    root = spec.get("root")
    if not isinstance(root, dict) or not isinstance(spec.get("process"), dict):
        raise click.UsageError(f"{path} is no OCI config.json: it has no root or no process")
    root["path"] = str(path.absolute().parent / str(root.get("path", "rootfs")))
    return spec


def _json_file(path: Path) -> dict[str, Any]:
    import json

    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise click.UsageError(f"cannot read {path}: {error}") from error
    if not isinstance(value, dict):
        raise click.UsageError(f"cannot read {path}: it is no JSON object")
    return value


def _output(uri: str) -> Path | None:
    if not uri:
        return None
    if not uri.startswith("file:///"):
        raise click.UsageError(f"--log-uri {uri}: write file:///PATH")
    return Path(uri.removeprefix("file://"))
