"""One directory of `certs.d`: its `hosts.toml`, or else Docker's certificate files."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

from lamina.errors import ConfigError
from lamina.images.registry.hosts import ALL_CAPABILITIES, Capability, Endpoint
from lamina.images.registry.urls import split_url

_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|\u00b5s|ms|s|m|h)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "\u00b5s": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)


def load_directory(directory: Path, default: Endpoint) -> tuple[Endpoint, ...]:
    """Return the endpoints that a host directory describes; `default` is the registry itself.

    Raises:
        ConfigError: the file cannot be read, is not TOML, or has unknown keys or bad values.
    """
    path = directory / "hosts.toml"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return (_with_certificate_files(directory, default),)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(path, [str(error)]) from error
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(path, [str(error)]) from error
    reader = _Reader(directory, default)
    endpoints = reader.read(table)
    if reader.problems:
        raise ConfigError(path, reader.problems)
    return endpoints


def _with_certificate_files(directory: Path, default: Endpoint) -> Endpoint:
    """Apply `*.crt` (authorities) and `X.cert` with `X.key` (what to show), as Docker does."""
    authorities = tuple(sorted(directory.glob("*.crt")))
    certificates = sorted(directory.glob("*.cert"))
    if len(certificates) > 1:
        raise ConfigError(directory, ["more than one client certificate (*.cert)"])
    if not authorities and not certificates:
        return default
    client = default.tls.client
    if certificates:
        client = (certificates[0], certificates[0].with_suffix(".key"))
    return replace(default, tls=replace(default.tls, ca=authorities, client=client))


class _Reader:
    """Turns the tables into endpoints and collects what is wrong with them, each with its key."""

    def __init__(self, directory: Path, default: Endpoint) -> None:
        self.problems: list[str] = []
        self._directory = directory
        self._default = default
        self._keys: dict[str, Callable[[str, object, Endpoint], Endpoint]] = {
            "capabilities": self._capabilities,
            "ca": self._ca,
            "client": self._client,
            "skip_verify": self._skip_verify,
            "header": self._header,
            "dial_timeout": self._dial_timeout,
            "proxy": self._proxy,
        }

    def read(self, table: Mapping[str, object]) -> tuple[Endpoint, ...]:
        """Return the hosts in the order of the file, then the server."""
        hosts = table.get("host", {})
        if not isinstance(hosts, dict):
            self._expect("host", 'tables such as [host."https://mirror"]')
            hosts = {}
        endpoints = [self._host(url, host) for url, host in hosts.items()]
        rest = {key: value for key, value in table.items() if key not in {"host", "server"}}
        server = table.get("server", "")
        if not isinstance(server, str):
            self._expect("server", "a string")
        elif server:
            endpoints.append(self._endpoint("", "server", server, rest, mirror=False))
        else:
            endpoints.append(self._settings("", rest, self._default))
        return tuple(endpoints)

    def _host(self, url: str, table: object) -> Endpoint:
        key = f'host."{url}"'
        if isinstance(table, dict):
            return self._endpoint(f"{key}.", key, url, table, mirror=True)
        self._expect(key, "a table")
        return self._default

    def _endpoint(
        self, prefix: str, key: str, url: str, table: Mapping[str, object], *, mirror: bool
    ) -> Endpoint:
        override = table.get("override_path", False)
        if not isinstance(override, bool):
            self._expect(f"{prefix}override_path", "true or false")
        parts = split_url(url if "://" in url else f"https://{url}")
        if parts is None or "@" in parts.netloc:
            self._expect(key, "an http:// or https:// URL with a host and without a user")
            return self._settings(prefix, table, self._default)
        path = str(PurePosixPath(parts.path)) if parts.path.strip("/") else ""
        if not override and not path.endswith("/v2"):
            path += "/v2"
        endpoint = Endpoint(
            self._default.namespace,
            parts.scheme,
            parts.netloc,
            path,
            mirror=mirror,
            tls=self._default.tls,
        )
        return self._settings(prefix, table, endpoint)

    def _settings(self, prefix: str, table: Mapping[str, object], endpoint: Endpoint) -> Endpoint:
        for name, value in table.items():
            if name in self._keys:
                endpoint = self._keys[name](f"{prefix}{name}", value, endpoint)
            elif name != "override_path":
                self.problems.append(f"{prefix}{name}: unknown key")
        return endpoint

    def _capabilities(self, key: str, value: object, endpoint: Endpoint) -> Endpoint:
        names = _strings(value)
        if names is None:
            self._expect(key, "a list of strings")
            return endpoint
        wanted: set[Capability] = {c for c in ALL_CAPABILITIES if c in map(str.lower, names)}
        for name in names:
            if name.lower() not in ALL_CAPABILITIES:
                self.problems.append(f'{key}: unknown capability "{name}" (pull, resolve, push)')
        return replace(endpoint, capabilities=frozenset(wanted) or ALL_CAPABILITIES)

    def _ca(self, key: str, value: object, endpoint: Endpoint) -> Endpoint:
        names = [value] if isinstance(value, str) else _strings(value)
        if names is None:
            self._expect(key, "a path or a list of paths")
            return endpoint
        files = tuple(self._file(key, name) for name in names)
        return replace(endpoint, tls=replace(endpoint.tls, ca=files))

    def _client(self, key: str, value: object, endpoint: Endpoint) -> Endpoint:
        pairs = _pairs(value)
        if pairs is None:
            self._expect(key, "a path, a list of paths or a list of [certificate, key] pairs")
            return endpoint
        if len(pairs) > 1:
            self.problems.append(f"{key}: only one client certificate is supported")
        if not pairs:
            return endpoint
        certificate, private_key = pairs[0]
        client = (self._file(key, certificate), self._file(key, private_key or certificate))
        return replace(endpoint, tls=replace(endpoint.tls, client=client))

    def _skip_verify(self, key: str, value: object, endpoint: Endpoint) -> Endpoint:
        if not isinstance(value, bool):
            self._expect(key, "true or false")
            return endpoint
        return replace(endpoint, tls=replace(endpoint.tls, skip_verify=value))

    def _header(self, key: str, value: object, endpoint: Endpoint) -> Endpoint:
        if not isinstance(value, dict):
            self._expect(key, "a table")
            return endpoint
        headers: list[tuple[str, str]] = []
        for name, texts in value.items():
            values = [texts] if isinstance(texts, str) else _strings(texts)
            bad = values is None or not all(v.isprintable() for v in values)
            if values is None or bad or _HEADER_NAME.fullmatch(name) is None:
                self._expect(f"{key}.{name}", "a header's name, and a string or a list of them")
                continue
            headers.append((name, ", ".join(values)))
        return replace(endpoint, headers=tuple(headers))

    def _dial_timeout(self, key: str, value: object, endpoint: Endpoint) -> Endpoint:
        seconds = _duration(value)
        if seconds is None:
            self._expect(key, 'a duration above 0 such as "1s" or "1m30s"')
            return endpoint
        return replace(endpoint, dial_timeout=seconds)

    def _proxy(self, key: str, value: object, endpoint: Endpoint) -> Endpoint:
        parts = split_url(value) if isinstance(value, str) else None
        if parts is None or parts.path not in {"", "/"} or parts.query:
            self._expect(key, "an http:// or https:// URL without a path")
            return endpoint
        return replace(endpoint, proxy=parts.geturl())

    def _file(self, key: str, name: str) -> Path:
        path = self._directory / name
        if not path.is_file():
            self.problems.append(f"{key}: no such file: {path}")
        return path

    def _expect(self, key: str, what: str) -> None:
        self.problems.append(f"{key}: expected {what}")


def _strings(value: object) -> list[str] | None:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        return None
    return value


def _pairs(value: object) -> list[tuple[str, str]] | None:
    """Return (certificate, key or "") pairs from any of the three ways to write them."""
    pairs: list[tuple[str, str]] = []
    for item in [value] if isinstance(value, str) else value if isinstance(value, list) else [0]:
        names = [item, ""] if isinstance(item, str) else _strings(item)
        if names is None or len(names) != 2:
            return None
        pairs.append((names[0], names[1]))
    return pairs


def _duration(value: object) -> float | None:
    """Return the seconds of a Go duration (`1h2m3.5s`), or None."""
    if not isinstance(value, str) or not value:
        return None
    parts = _DURATION_PART.findall(value)
    if "".join(number + unit for number, unit in parts) != value:
        return None
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    return seconds if seconds > 0 else None
