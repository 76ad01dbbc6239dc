"""Entry point of the `lamina` command: finds the verb, runs it, turns errors into one line."""

from __future__ import annotations

import errno
import importlib
import logging
import os
import signal
import sys
from contextlib import closing
from typing import NoReturn

import click

from lamina.cli.app import App, Group
from lamina.cli.output import printable
from lamina.errors import (
    Internal,
    InvalidArgument,
    LaminaError,
    PermissionDenied,
    ResourceExhausted,
)
from lamina.version import VERSION

# Name -> (module, attribute, what `--help` says). Only the module of the verb typed is imported.
_VERBS = {
    "btrfs": ("lamina.cli.btrfs", "btrfs", "Set up a btrfs for the btrfs snapshotter."),
    "containers": ("lamina.cli.containers", "containers", "List, describe and remove containers."),
    "content": ("lamina.cli.content", "content", "List, print, store, label and remove blobs."),
    "devmapper": ("lamina.cli.devmapper", "devmapper", "Set up and look after a thin pool."),
    "doctor": ("lamina.cli.doctor", "doctor", "Tell what works here, what does not, and why."),
    "fsck": ("lamina.cli.fsck", "fsck", "Check that the store and the disk agree; repair it."),
    "images": ("lamina.cli.images", "images", "Pull, list, check, name, mount and remove images."),
    "lazy": ("lamina.cli.lazy", "lazy", "Look at lazy layers, and have more of them fetched."),
    "leases": ("lamina.cli.leases", "leases", "List, make and remove leases."),
    "plugins": ("lamina.cli.plugins", "plugins", "List snapshotters and whether they work here."),
    "run": ("lamina.cli.run", "run", "Run a container."),
    "serve": ("lamina.cli.serve", "serve", "Serve snapshotters to containerd."),
    "snapshots": ("lamina.cli.snapshots", "snapshots", "Work with snapshots directly."),
    "tasks": ("lamina.cli.tasks", "tasks", "List, signal and enter running containers."),
    "zfs": ("lamina.cli.zfs", "zfs", "Set up and look after a ZFS pool."),
}
_ALIASES = {
    "c": "containers",
    "container": "containers",
    "i": "images",
    "image": "images",
    "plugin": "plugins",
    "snapshot": "snapshots",
    "t": "tasks",
    "task": "tasks",
}

# What the operating system refuses, where nobody could say more about it than where it was.
_REFUSALS: dict[int | None, type[LaminaError]] = {
    errno.EACCES: PermissionDenied,
    errno.EPERM: PermissionDenied,
    errno.EROFS: PermissionDenied,
    errno.EDQUOT: ResourceExhausted,
    errno.EMFILE: ResourceExhausted,
    errno.ENOMEM: ResourceExhausted,
    errno.ENOSPC: ResourceExhausted,
}


class Terminated(KeyboardInterrupt):
    """SIGTERM: unwinds like Ctrl-C, so that nothing is left half-made."""


class _Verbs(Group):
    """The verbs, each imported when it is first asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name every verb without importing any."""
        return sorted(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the verb's module."""
        verb = _VERBS.get(_ALIASES.get(cmd_name, cmd_name))
        if verb is None:
            return None
        command: click.Command = getattr(importlib.import_module(verb[0]), verb[1])
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table above; click's own would import every verb for its help line."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, _VERBS[name][2]) for name in self.list_commands(ctx)])


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="lamina")
def cli() -> None:
    """Every containerd snapshotter, without the daemon: ctr's verbs on a directory."""


def main() -> NoReturn:
    """Run the command line and exit with the error tree's code."""
    _occupy_standard_descriptors()
    signal.signal(signal.SIGTERM, _terminate)
    logging.getLogger("lamina").addHandler(_Warnings(logging.WARNING))
    _leave(_run(App()))


def _occupy_standard_descriptors() -> None:
    """Keep files that are opened later from being taken for standard streams that are closed."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


class _Warnings(logging.Handler):
    """Prints what is to be known although it is no failure, each in one line."""

    def emit(self, record: logging.LogRecord) -> None:
        _say(f"warning: {record.getMessage()}")


def _terminate(*_: object) -> NoReturn:
    raise Terminated


def _run(app: App) -> int:
    try:
        # Not click's own `main`: that takes SIGTERM for Ctrl-C, and a reader that is gone for a
        # failure.
        with closing(app), cli.make_context("lamina", sys.argv[1:], obj=app) as context:
            result = cli.invoke(context)
    except click.exceptions.Exit as exit:
        return exit.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except Terminated:
        return 128 + signal.SIGTERM
    except (KeyboardInterrupt, click.Abort):
        return 128 + signal.SIGINT
    except LaminaError as error:
        return _fail(str(error), error.exit_code)
    except BrokenPipeError:  # the reader of our output is gone
        return 128 + signal.SIGPIPE
    except OSError as error:
        return _fail_system(error)
    except UnicodeEncodeError as error:
        if error.encoding != "utf-8":
            return _fail_unexpectedly(error)
        # Other bytes that were typed; nobody has looked at the name before it was to be stored.
        refused = InvalidArgument("read name", error.object, hint="only paths may be no UTF-8")
        return _fail(str(refused), refused.exit_code)
    except Exception as error:
        return _fail_unexpectedly(error)
    return result if isinstance(result, int) else 0


def _fail_unexpectedly(error: Exception) -> int:
    logging.getLogger(__name__).debug("unexpected error", exc_info=True)
    what = f"{type(error).__name__}: {error}"
    return _fail(f"internal error: {what}; --debug shows where", Internal.exit_code)


def _leave(code: int) -> NoReturn:
    """End the process at once: all is closed, and to take the interpreter apart costs time."""
    # Python has None for a stream that was closed before it started.
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except BrokenPipeError:
            code = 128 + signal.SIGPIPE
        except OSError as error:
            code = _fail_system(error)
    os._exit(code)


def _fail_system(error: OSError) -> int:
    kind = _REFUSALS.get(error.errno, LaminaError)
    subject = f" {error.filename!r}" if error.filename is not None else ""
    hint = "; run as root" if kind is PermissionDenied and os.geteuid() != 0 else ""
    return _fail(f"{error.strerror or error}{subject}{hint}", kind.exit_code)


def _fail(message: str, code: int) -> int:
    _say(message)
    return code


def _say(message: str) -> None:
    """Print one line; a name in it may hold what would break the line or command the terminal."""
    try:
        click.echo(f"lamina: {printable(message)}", err=True)
    except OSError:
        pass  # nobody can be told
