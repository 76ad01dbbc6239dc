"""What every verb shares: the global options and the store that they open."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from lamina.cli.output import printable
from lamina.core.units import parse_size
from lamina.errors import InvalidArgument, LaminaError

if TYPE_CHECKING:
    from lamina.api.channel import Channel
    from lamina.config import Config
    from lamina.core.snapshot import Snapshotter
    from lamina.store import Store

DEFAULT_ROOT = Path("/var/lib/lamina")
DEFAULT_CONFIG = Path("/etc/lamina/config.toml")
DEFAULT_NAMESPACE = "default"


class App:
    """The command's view of the world; `click`'s context object.

    The store is opened at its first use, so that a verb which needs none stays instant.
    """

    def __init__(self) -> None:
        self.root_option: Path | None = None
        self.config_option: Path | None = None
        self.snapshotter_option: str | None = None
        self.address_option: Path | None = None
        self.namespace_option: str | None = None

    @cached_property
    def config(self) -> Config:
        """The configuration file's content; defaults where there is no file.

        Raises:
            NotFound: the file was named by the user and does not exist.
            ConfigError: anything in it is wrong.
        """
        from lamina.config import load

        if self.config_option is not None:
            return load(self.config_option)
        return load(DEFAULT_CONFIG, missing_ok=True)

    @property
    def root(self) -> Path:
        """`--root`, else the configuration's `root`, else /var/lib/lamina; always absolute."""
        return (self.root_option or self.config.root or DEFAULT_ROOT).absolute()

    @cached_property
    def store(self) -> Store:
        """The store at `root`; closed by `main`."""
        from lamina.store import Store

        return Store(self.root, config=self.config)

    @property
    def snapshotter(self) -> Snapshotter:
        """The snapshotter that `--snapshotter` names, else the default one; maybe a daemon's."""
        if self.address_option is None:
            return self.store.snapshotter(self.snapshotter_option)
        from lamina.api.client import RemoteSnapshotter

        return RemoteSnapshotter(self.channel, self.snapshotter_name, namespace=self.namespace)

    @property
    def snapshotter_name(self) -> str:
        """What `--snapshotter` says, else the default, which is containerd's too."""
        from lamina.store import DEFAULT_SNAPSHOTTER

        return self.snapshotter_option or DEFAULT_SNAPSHOTTER

    @property
    def namespace(self) -> str:
        """What `--namespace` says; only a containerd asks for it."""
        return self.namespace_option or DEFAULT_NAMESPACE

    @cached_property
    def channel(self) -> Channel:
        """The way to the daemon at `--address`."""
        from lamina.api.channel import Channel

        if self.address_option is None:
            raise InvalidArgument("call a daemon", hint="name its socket with --address")
        return Channel(self.address_option)

    def close(self) -> None:
        """Close what was opened; this process ends then."""
        channel: Channel | None = self.__dict__.pop("channel", None)
        if channel is not None:
            channel.close()
        store: Store | None = self.__dict__.pop("store", None)
        if store is not None:
            from lamina.meta.database import Database

            Database.process_ends = True
            store.close()


pass_app = click.make_pass_decorator(App)


def stored_option(
    attribute: str, *names: str, convert: Callable[[str], object] = str, **attributes: Any
) -> click.Option:
    """Return an option whose value becomes the App's `attribute`, wherever on the line it stands.

    What is typed later counts more, and what is typed anywhere more than the environment.
    """

    def store(context: click.Context, option: click.Parameter, value: str | None) -> None:
        app = context.ensure_object(App)
        source = context.get_parameter_source(option.name or "")
        typed_before = source == ParameterSource.ENVIRONMENT and getattr(app, attribute) is not None
        if value is None or typed_before:
            return
        if not value:  # mostly an unset variable, and neither the current directory nor a default
            raise click.BadParameter("it is empty", context, option)
        setattr(app, attribute, convert(value))

    return click.Option(names, expose_value=False, callback=store, **attributes)


def _set_debug(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        # What the HTTP library logs has whole URLs, with the signatures of storage providers.
        logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
        logger = logging.getLogger("lamina")
        logger.setLevel(logging.DEBUG)
        logger.handlers.clear()


def _global_options() -> list[click.Option]:
    return [
        stored_option(
            "root_option",
            "--root",
            convert=Path,
            metavar="DIR",
            envvar="LAMINA_ROOT",
            help=f"Directory of everything Lamina keeps.  [default: {DEFAULT_ROOT}]",
        ),
        stored_option(
            "config_option",
            "--config",
            convert=Path,
            metavar="FILE",
            envvar="LAMINA_CONFIG",
            help=f"containerd configuration file (TOML).  [default: {DEFAULT_CONFIG}]",
        ),
        click.Option(
            ["--debug"],
            is_flag=True,
            expose_value=False,
            callback=_set_debug,
            help="Log what is done to stderr.",
        ),
    ]


class Command(click.Command):
    """A verb; takes the global options too, wherever its own options may stand."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.extend(_global_options())


class Group(click.Group):
    """A group of verbs, with ctr's second names for some of them.

    `aliases` maps the other name to the one under which the verb is listed.
    """

    command_class = Command

    def __init__(self, *args: Any, aliases: dict[str, str] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.aliases = aliases or {}
        self.params.extend(_global_options())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Find the verb by either of its names."""
        return super().get_command(ctx, self.aliases.get(cmd_name, cmd_name))


Group.group_class = Group


class Size(click.ParamType[int]):
    """An option's value such as `10GiB`, as bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse the text; a default is a number already."""
        if isinstance(value, int):
            return value
        try:
            return parse_size(value)
        except InvalidArgument as error:
            self.fail(str(error), param, ctx)


def snapshotter_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ctr's `--snapshotter`, which CONTAINERD_SNAPSHOTTER sets too."""
    return click.option(
        "--snapshotter",
        envvar="CONTAINERD_SNAPSHOTTER",
        metavar="NAME",
        help="Snapshotter to use.  [default: overlayfs]",
    )(function)


def parse_labels(pairs: tuple[str, ...]) -> dict[str, str]:
    """Return `KEY=VALUE` arguments as labels; `KEY` alone is `true`, `KEY=` is empty (deletes)."""
    labels: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key:
            raise click.BadParameter(f"label {pair!r} has no key; write KEY=VALUE")
        labels[key] = value if equals else "true"
    return labels


def for_each(names: Iterable[str], function: Callable[[str], object]) -> None:
    """Call the function for every name; one that fails does not keep the others.

    Raises:
        LaminaError: the last failure; those before it are printed.
    """
    failures: list[LaminaError] = []
    for name in names:
        try:
            function(name)
        except LaminaError as error:
            failures.append(error)
    for failure in failures[:-1]:
        click.echo(f"lamina: {printable(str(failure))}", err=True)
    if failures:
        raise failures[-1]
