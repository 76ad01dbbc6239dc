"""`lamina tasks`: ctr's verbs on running containers."""

from __future__ import annotations

import click

from lamina.cli.app import App, Command, Group, for_each, pass_app
from lamina.cli.output import json_option, print_json, print_table
from lamina.cli.run import containers_of, exit_code_of
from lamina.runtime.execs import ExecRequest, Execs
from lamina.runtime.tasks import Tasks, parse_signal

_ALIASES = {"list": "ls", "delete": "rm", "del": "rm", "remove": "rm"}


@click.group(cls=Group, aliases=_ALIASES)
def tasks() -> None:
    """List, signal and enter running containers."""


@tasks.command("ls")
@click.option("-q", "--quiet", is_flag=True, help="Print only the ids.")
@json_option
@pass_app
def list_(app: App, quiet: bool, as_json: bool) -> None:
    """List tasks."""
    found = list(_tasks(app).list())
    if as_json:
        print_json(
            [
                {"ID": t.id, "Pid": t.pid, "Status": str(t.status), "ExitStatus": t.exit_code}
                for t in found
            ]
        )
    elif quiet:
        for task in found:
            click.echo(task.id)
    else:
        rows = ((task.id, str(task.pid), str(task.status)) for task in found)
        print_table(("TASK", "PID", "STATUS"), rows, min_width=4, padding=4)


@tasks.command()
@click.option("-s", "--signal", "name", metavar="SIGNAL", help="Default: the image's stop signal.")
@click.option("-a", "--all", "everyone", is_flag=True, help="Signal every process.")
@click.option("--exec-id", metavar="ID", help="Signal a process that `exec` started.")
@click.argument("container")
@pass_app
def kill(app: App, container: str, name: str | None, everyone: bool, exec_id: str | None) -> None:
    """Send a signal to a container."""
    number = parse_signal(name) if name is not None else None
    if exec_id is not None:
        Execs(_tasks(app)).kill(container, exec_id, number or parse_signal("TERM"))
    else:
        _tasks(app).kill(container, number, everyone=everyone)


@tasks.command("exec", cls=Command, context_settings={"allow_interspersed_args": False})
@click.option("--exec-id", default="", metavar="ID", help="Name of the process, for `kill`.")
@click.option("-t", "--tty", is_flag=True, help="Give it a terminal.")
@click.option("-d", "--detach", is_flag=True, help="Return when it is started.")
@click.option("--cwd", default="", metavar="DIR", help="Working directory.")
@click.option("--user", metavar="USER[:GROUP]", help="Run as this user of the container.")
@click.option("--env", multiple=True, metavar="NAME=VALUE", help="Set an environment variable.")
@click.argument("container")
@click.argument("command", nargs=-1, required=True, metavar="COMMAND [ARG]...")
@pass_app
def exec_(
    app: App,
    container: str,
    command: tuple[str, ...],
    exec_id: str,
    tty: bool,
    detach: bool,
    cwd: str,
    user: str | None,
    env: tuple[str, ...],
) -> int:
    """Run one more process in a running container; the exit code is its own."""
    request = ExecRequest(
        container=container,
        args=command,
        exec_id=exec_id,
        terminal=tty,
        cwd=cwd,
        user=user,
        env=env,
        detach=detach,
        forward_signals=True,
    )
    return exit_code_of(lambda: Execs(_tasks(app)).run(request))


@tasks.command()
@click.option("-f", "--force", is_flag=True, help="Kill it first.")
@click.argument("ids", nargs=-1, required=True)
@pass_app
def rm(app: App, ids: tuple[str, ...], force: bool) -> int:
    """Remove tasks that have ended; the exit code is that of the last one."""
    codes: list[int] = []
    for_each(ids, lambda id: codes.append(_tasks(app).remove(id, force=force)))
    return codes[-1]


@tasks.command()
@click.argument("container")
@pass_app
def pause(app: App, container: str) -> None:
    """Freeze a container."""
    _tasks(app).pause(container)


@tasks.command()
@click.argument("container")
@pass_app
def resume(app: App, container: str) -> None:
    """Let a frozen container go on."""
    _tasks(app).resume(container)


@tasks.command()
@json_option
@click.argument("container")
@pass_app
def ps(app: App, container: str, as_json: bool) -> None:
    """List the processes of a container by their ids on the host."""
    pids = list(_tasks(app).processes(container))
    if as_json:
        print_json([{"Pid": pid} for pid in pids])
    else:
        print_table(("PID", "INFO"), ((str(pid), "-") for pid in pids))


def _tasks(app: App) -> Tasks:
    return Tasks(containers_of(app))
