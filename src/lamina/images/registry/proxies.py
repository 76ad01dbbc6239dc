"""Which HTTP proxy a URL goes through: the meaning of HTTP_PROXY, HTTPS_PROXY and NO_PROXY.

Whoever may read the environment fills in `Proxies`; nothing here does.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Proxies:
    """Proxy URLs by the scheme of the target, "" for none; `no_proxy` as in the environment."""

    http: str = field(default="", repr=False)
    https: str = field(default="", repr=False)
    no_proxy: str = ""

    def for_url(self, url: str) -> str:
        """Return the proxy's URL, or ""; loopback addresses are never proxied."""
        parts = urlsplit(url)
        host = parts.hostname or ""
        proxy = self.https if parts.scheme == "https" else self.http
        if not proxy or is_loopback(host) or self._exempt(host, parts.port):
            return ""
        return proxy if "://" in proxy else f"http://{proxy}"

    def _exempt(self, host: str, port: int | None) -> bool:
        rules = (rule.strip().lower() for rule in self.no_proxy.split(","))
        return any(_matches(rule, host.lower(), port) for rule in rules if rule)


def is_loopback(host: str) -> bool:
    """Tell whether a host name (without port) is this machine: `localhost`, 127.* or ::1."""
    if host == "localhost":
        return True
    address = _address(host)
    return address is not None and address.is_loopback


def _matches(rule: str, host: str, port: int | None) -> bool:
    if rule == "*":
        return True
    name, colon, rule_port = rule.rpartition(":")
    if colon and rule_port.isdecimal() and _address(rule) is None:
        if port != int(rule_port):
            return False
        rule = name.strip("[]")
    address = _address(host)
    if address is not None:
        return _covers(rule, address)
    bare = rule.removeprefix("*").removeprefix(".")
    if host.endswith(f".{bare}"):
        return True
    return host == bare and not rule.startswith((".", "*"))


def _covers(rule: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    try:
        return address in ipaddress.ip_network(rule, strict=False)
    except ValueError:
        return False


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
