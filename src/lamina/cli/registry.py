"""ctr's options about registries, and the client that they describe."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from lamina.images.registry.client import Registry
    from lamina.images.registry.credentials import Credential

_CERTS_D = Path("/etc/containerd/certs.d")
_file = click.Path(exists=True, dir_okay=False, path_type=Path)

_OPTIONS = (
    click.option("--plain-http", is_flag=True, help="Speak http."),
    click.option("-k", "--skip-verify", is_flag=True, help="Take any certificate."),
    click.option("-u", "--user", metavar="USER[:PASSWORD]", help="Log in as this user."),
    click.option(
        "--hosts-dir",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        help=f"Directory of hosts.toml files.  [default: {_CERTS_D}]",
    ),
    click.option("--tlscacert", type=_file, help="Certificate authority of the registry (PEM)."),
    click.option("--tlscert", type=_file, help="Client certificate (PEM)."),
    click.option("--tlskey", type=_file, help="Key of the client certificate (PEM)."),
)
NAMES = ("plain_http", "skip_verify", "user", "hosts_dir", "tlscacert", "tlscert", "tlskey")


def registry_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a verb; `make_registry` takes what they yield."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def make_registry(
    *,
    plain_http: bool,
    skip_verify: bool,
    user: str | None,
    hosts_dir: Path | None,
    tlscacert: Path | None,
    tlscert: Path | None,
    tlskey: Path | None,
) -> Registry:
    """Return a client for these options, docker's configuration and the environment's proxies."""
    from lamina.images.registry.client import Registry
    from lamina.images.registry.credentials import CredentialStore
    from lamina.images.registry.hosts import TLS, HostsConfig

    if tlskey and not tlscert:
        raise click.UsageError("--tlskey needs --tlscert")
    tls = TLS(
        ca=(tlscacert,) if tlscacert else (),
        client=(tlscert, tlskey or tlscert) if tlscert else None,
        skip_verify=skip_verify,
    )
    directory = hosts_dir or (_CERTS_D if _CERTS_D.is_dir() else None)
    credentials = CredentialStore(
        user=_credential(user) if user else None, docker_config=_docker_config()
    )
    return Registry(HostsConfig(directory, plain_http, tls), credentials, proxies=_proxies())


def _credential(user: str) -> Credential:
    from lamina.images.registry.credentials import Credential

    name, colon, secret = user.partition(":")
    if not colon:
        secret = _asked_for_password()
    return Credential(name, secret)


def _asked_for_password() -> str:
    import warnings
    from getpass import GetPassWarning

    with warnings.catch_warnings():
        warnings.simplefilter("error", GetPassWarning)  # what is typed would be seen
        try:
            password: str = click.prompt("Password", hide_input=True, err=True)
        except GetPassWarning:
            fault = "no terminal to ask for the password; write --user NAME:PASSWORD"
            raise click.UsageError(fault) from None
    return password


def _docker_config() -> Path | None:
    directory = os.environ.get("DOCKER_CONFIG")
    if directory:
        return Path(directory, "config.json")
    try:
        return Path.home() / ".docker/config.json"
    except RuntimeError:  # neither HOME is set nor has the user an entry in the passwd file
        return None


def _proxies() -> Any:
    from lamina.images.registry.proxies import Proxies

    def variable(name: str) -> str:
        return os.environ.get(name.lower()) or os.environ.get(name.upper()) or ""

    return Proxies(variable("http_proxy"), variable("https_proxy"), variable("no_proxy"))
