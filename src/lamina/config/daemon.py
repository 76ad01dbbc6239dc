"""How `lamina serve` listens, logs and is watched: containerd's sections, and one of Lamina's own.

containerd's versions 2 and 3 have `[grpc]`, `[debug]` and `[metrics]` at the top of the file;
version 4 has the first and the last among the plugins. Both ways are read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lamina.config.section import fill, key_faults
from lamina.plugins import known

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

DEFAULT_ADDRESS = "/run/lamina/lamina.sock"
LONGEST_SOCKET_PATH = 107
"""Bytes; the kernel's `sun_path` has room for these and a NUL."""
OWN_SECTION = "io.lamina.daemon.v1.snapshots"
LEVELS = ("trace", "debug", "info", "warn", "error", "fatal", "panic")
FORMATS = ("text", "json")

# By the name of the section; containerd has more keys in them than a snapshotter has use for.
_PASSED_OVER = {
    "grpc": {"max_recv_message_size", "max_send_message_size", "tcp_address", "tcp_tls_ca",
             "tcp_tls_cert", "tcp_tls_common_name", "tcp_tls_key"},
    "debug": {"address", "gid", "log_trace_id", "uid"},
    "metrics": {"grpc_histogram"},
}  # fmt: skip
_IN_PLUGINS = {
    "grpc": "io.containerd.server.v1.grpc",
    "metrics": "io.containerd.server.v1.metrics",
    "snapshots": OWN_SECTION,
}

Table = dict[str, Any]
Tables = Mapping[str, Mapping[str, object]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grpc:
    """`[grpc]`: the socket's absolute path, and who owns it, by default whoever runs the daemon."""

    address: str = DEFAULT_ADDRESS
    uid: int = field(default_factory=os.geteuid)
    gid: int = field(default_factory=os.getegid)

    def problems(self) -> Iterator[str]:
        """Yield every fault that the types alone do not show."""
        if fault := path_fault(self.address):
            yield f"address: {fault}"
        for key, value in (("uid", self.uid), ("gid", self.gid)):
            if not 0 <= value < 2**32 - 1:
                yield f"{key}: expected the number of a user or group, got {value}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Debug:
    """`[debug]`: the least level that is logged, and how a line looks; "" for the default."""

    level: str = ""
    format: str = ""

    def problems(self) -> Iterator[str]:
        """Yield every fault that the types alone do not show."""
        if self.level not in {"", *LEVELS}:
            yield f"level: expected one of {', '.join(LEVELS)}, got {self.level!r}"
        if self.format not in {"", *FORMATS}:
            yield f"format: expected one of {', '.join(FORMATS)}, got {self.format!r}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """`[metrics]`: `HOST:PORT` or a socket's absolute path; "" for no metrics."""

    address: str = ""

    def problems(self) -> Iterator[str]:
        """Yield every fault that the types alone do not show."""
        if self.address.startswith("/"):
            if fault := path_fault(self.address):
                yield f"address: {fault}"
        elif self.address and host_and_port(self.address) is None:
            yield f"address: expected HOST:PORT or an absolute path, got {self.address!r}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshots:
    """Lamina's own section: further names, each of a snapshotter."""

    aliases: dict[str, str] = field(default_factory=dict)

    def problems(self) -> Iterator[str]:
        """Yield every fault that the types alone do not show."""
        names = known()
        for alias, name in self.aliases.items():
            if name not in names:
                yield f"aliases.{alias}: expected a snapshotter's name, got {name!r}"
            if not alias or alias in names:
                yield f"aliases.{alias}: a snapshotter has this name already"


_SECTIONS: dict[str, type[Grpc | Debug | Metrics | Snapshots]] = {
    "grpc": Grpc,
    "debug": Debug,
    "metrics": Metrics,
    "snapshots": Snapshots,
}


class Daemon(NamedTuple):
    """What a configuration says of the daemon, defaults filled in."""

    grpc: Grpc
    debug: Debug
    metrics: Metrics
    snapshots: Snapshots


def daemon(tables: Tables) -> Daemon:
    """Return the daemon's configuration; the tables have no faults."""
    return Daemon(*(_filled(name, tables.get(name, {})) for name in _SECTIONS))


def daemon_tables(document: Table) -> Iterator[tuple[str, str, Any]]:
    """Yield name, place in the file and content of each section that concerns the daemon."""
    plugins = document.get("plugins")
    for name in _SECTIONS:
        if name in document and name != "snapshots":
            yield name, name, document[name]
        uri = _IN_PLUGINS.get(name)
        if isinstance(plugins, dict) and uri in plugins:
            yield name, f'plugins."{uri}"', plugins[uri]


def daemon_key_faults(name: str, table: Table) -> list[str]:
    """Return every key of a section that containerd lacks too, or whose value has a wrong type."""
    return key_faults(_SECTIONS[name], _used(name, table))


def daemon_value_faults(tables: Tables) -> Iterator[str]:
    """Yield what is wrong with values of the right type, in merged sections."""
    for name, table in tables.items():
        place = f'plugins."{OWN_SECTION}"' if name == "snapshots" else name
        yield from (f"{place}.{fault}" for fault in _filled(name, table).problems())


def path_fault(address: str) -> str:
    """Return why no socket can be at this path, "" where one can."""
    if not Path(address).is_absolute():
        return f"expected an absolute path, got {address!r}"
    if len(address.encode()) > LONGEST_SOCKET_PATH or "\0" in address:
        return f"expected at most {LONGEST_SOCKET_PATH} bytes and no NUL, got {address!r}"
    return ""


def host_and_port(address: str) -> tuple[str, int] | None:
    """Split `HOST:PORT` as Go does: no host means all of them, brackets are around IPv6."""
    host, colon, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        return None
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        return None
    return host, int(port)


def _filled(name: str, table: Mapping[str, object]) -> Any:
    section: type[DataclassInstance] = _SECTIONS[name]
    return fill(section, _used(name, table))


def _used(name: str, table: Mapping[str, object]) -> Mapping[str, object]:
    """Leave out what only containerd has a use for."""
    passed_over = _PASSED_OVER.get(name, set())
    return {key: value for key, value in table.items() if key not in passed_over}
