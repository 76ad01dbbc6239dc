"""Which hosts serve a registry name, in order: containerd's `certs.d` and its defaults.

Source: containerd `docs/hosts.md` and `core/remotes/docker/config/hosts.go`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from lamina.errors import InvalidArgument
from lamina.images.reference import DOCKER_HUB
from lamina.images.registry.proxies import is_loopback

Capability = Literal["pull", "resolve", "push"]
ALL_CAPABILITIES: frozenset[Capability] = frozenset({"pull", "resolve", "push"})

DIAL_SECONDS = 30.0
_HUB_SERVER = "registry-1.docker.io"


@dataclass(frozen=True, slots=True)
class TLS:
    """How to check a server's certificate, and which one to show it.

    Attributes:
        ca: PEM files of further authorities, beside the system's.
        client: (certificate, key) PEM files; the key may be in the certificate's file.
        skip_verify: take any certificate.
    """

    ca: tuple[Path, ...] = ()
    client: tuple[Path, Path] | None = None
    skip_verify: bool = False


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One host to ask for what a registry name has.

    Attributes:
        namespace: the registry name, such as `docker.io`.
        scheme: `https` or `http`.
        host: `HOST[:PORT]` to connect to.
        path: where the API starts, mostly `/v2`.
        mirror: not the registry itself, so `--user` is not meant for it.
        plain_fallback: speak http if the server turns out not to speak TLS.
        headers: sent with each request to this host, and to no other.
        proxy: proxy URL instead of the environment's.
    """

    namespace: str
    scheme: str
    host: str
    path: str = "/v2"
    capabilities: frozenset[Capability] = ALL_CAPABILITIES
    mirror: bool = False
    plain_fallback: bool = False
    tls: TLS = TLS()
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    dial_timeout: float = DIAL_SECONDS
    proxy: str = field(default="", repr=False)

    @property
    def url(self) -> str:
        """The API's root."""
        return f"{self.scheme}://{self.host}{self.path}"

    @property
    def query(self) -> str:
        """What tells a mirror which registry is meant: `?ns=NAMESPACE`, or nothing."""
        own = {self.namespace, _HUB_SERVER} if self.namespace == DOCKER_HUB else {self.namespace}
        return "" if self.host in own else f"?ns={self.namespace}"


@dataclass(frozen=True, slots=True)
class HostsConfig:
    """Where registries are, as the command line and `certs.d` say.

    Attributes:
        directory: a `certs.d` directory, read at each look-up, or None.
        plain_http: use http for hosts that no `hosts.toml` gives a URL for.
        tls: for every host, unless its `hosts.toml` says otherwise.
    """

    directory: Path | None = None
    plain_http: bool = False
    tls: TLS = TLS()

    def endpoints(self, namespace: str) -> tuple[Endpoint, ...]:
        """Return the hosts to try for a registry name, in order, mirrors first.

        Raises:
            ConfigError: its `hosts.toml` is wrong; has every problem found.
        """
        default = self._default(namespace)
        directory = self._directory_of(namespace)
        if directory is None:
            return (default,)
        # Here, because reading TOML costs start-up time and few machines have such a directory.
        from lamina.images.registry.hosts_file import load_directory

        return load_directory(directory, default)

    def _default(self, namespace: str) -> Endpoint:
        """Return the registry itself.

        Loopback hosts on an unusual port may speak either protocol and seldom have a certificate
        that can be verified, so they are asked by https, unverified, and then by http.
        """
        host = _HUB_SERVER if namespace == DOCKER_HUB else namespace
        name, port = split_host(host)
        endpoint = Endpoint(namespace, "http" if self.plain_http else "https", host, tls=self.tls)
        if self.plain_http or not is_loopback(name) or port == 443:
            return endpoint
        if port == 80:
            return replace(endpoint, scheme="http")
        return replace(endpoint, plain_fallback=True, tls=replace(self.tls, skip_verify=True))

    def _directory_of(self, namespace: str) -> Path | None:
        if self.directory is None:
            return None
        name, colon, port = namespace.rpartition(":")
        names = [namespace, "_default"]
        if colon and port.isdecimal():
            names.insert(0, f"{name}_{port}_")
        return next((path for each in names if (path := self.directory / each).is_dir()), None)


def split_host(host: str) -> tuple[str, int | None]:
    """Split `HOST[:PORT]`; an IPv6 address loses its brackets.

    Raises:
        InvalidArgument: the port is not a number below 65536.
    """
    parts = urlsplit(f"//{host}")
    try:
        return parts.hostname or "", parts.port
    except ValueError as error:
        raise InvalidArgument("connect to registry", host, hint="ports are 1 to 65535") from error
