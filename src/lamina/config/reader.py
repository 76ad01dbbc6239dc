"""Reads configuration files: the TOML, the imports, and every fault in them."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from lamina.config.daemon import daemon_key_faults, daemon_tables, daemon_value_faults
from lamina.config.section import fill, key_faults, type_fault
from lamina.errors import LaminaError
from lamina.plugins import known
from lamina.snapshotters import DRIVERS, find
from lamina.snapshotters.plugin import PLUGIN_TYPE, AnyPlugin

VERSIONS = (2, 3, 4)
"""Those that name plugins by URI; they name the snapshotters and their keys alike."""

MAX_BYTES = 4 << 20
"""Of a file: what is larger, such as a device that never ends, is no configuration."""

Table = dict[str, Any]

# The keys that containerd has at the top of the file; those that Lamina uses have their type.
_TOP_LEVEL: dict[str, type | None] = {
    "cgroup": None,
    "debug": dict,
    "disabled_plugins": tuple,
    "grpc": dict,
    "imports": tuple,
    "metrics": dict,
    "no_subreaper": None,
    "oom_score": None,
    "plugin_dir": None,
    "plugins": dict,
    "proxy_plugins": None,
    "required_plugins": None,
    "root": str,
    "state": None,
    "stream_processors": None,
    "temp": None,
    "timeouts": None,
    "ttrpc": None,
    "version": int,
}


class Reader:
    """Reads a file and its imports; as with containerd, an imported key replaces the importer's.

    Attributes:
        root: the last `root`, "" where there is none.
        disabled: every entry of every `disabled_plugins`.
        sections: the snapshotters' tables by URI, merged key by key.
        daemon: the tables that concern the daemon by the section's name, merged key by key.
        problems: every fault, in the order of reading; imported files' begin with the file's name.
    """

    def __init__(self) -> None:
        self.root = ""
        self.disabled: set[str] = set()
        self.sections: dict[str, Table] = {}
        self.daemon: dict[str, Table] = {}
        self.problems: list[str] = []
        self._seen: set[Path] = set()

    def read(self, path: Path) -> None:
        """Read the file and everything that it imports, then check how it all fits together."""
        self._read(path, "")
        if not self.problems:
            self.problems += self._value_faults()

    def _read(self, path: Path, prefix: str) -> None:
        if path.resolve() in self._seen:
            return
        self._seen.add(path.resolve())
        try:
            with path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
            if len(data) > MAX_BYTES:
                self.problems.append(f"{prefix}has more than {MAX_BYTES >> 20} MiB")
                return
            document = tomllib.loads(data.decode())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            self.problems.append(f"{prefix}not TOML: {error}")
            return
        except RecursionError:
            self.problems.append(f"{prefix}has too many values inside one another")
            return
        except OSError as error:
            self.problems.append(f"{prefix}cannot be read: {error.strerror}")
            return
        faults = [*_top_faults(document), *_plugin_faults(document), *_daemon_faults(document)]
        self.problems += [prefix + fault for fault in faults]
        if not faults:
            self._merge(document)
        for imported in imported_files(path.parent, document):
            self._read(imported, f"{imported}: ")

    def _merge(self, document: Table) -> None:
        self.root = document.get("root") or self.root
        self.disabled.update(document.get("disabled_plugins", []))
        for uri, table in _snapshotter_tables(document):
            self.sections.setdefault(uri, {}).update(table)
        for name, _, table in daemon_tables(document):
            self.daemon.setdefault(name, {}).update(table)

    def _value_faults(self) -> Iterator[str]:
        """Yield what the snapshotters and the daemon object to, in the merged sections."""
        for uri, table in self.sections.items():
            plugin = _plugin(uri)
            if plugin is not None:
                faults = fill(plugin.config, table).problems()
                yield from (f'plugins."{uri}".{fault}' for fault in faults)
        yield from daemon_value_faults(self.daemon)


def imported_files(directory: Path, document: Table) -> Iterator[Path]:
    """Yield the imported files: paths or patterns, relative to the importing file."""
    patterns = document.get("imports", [])
    if type_fault(patterns, tuple):
        return
    for pattern in patterns:
        path = directory / pattern
        if set("*?[") & set(pattern):
            yield from sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
        else:
            yield path


def _top_faults(document: Table) -> Iterator[str]:
    for key, value in document.items():
        if key not in _TOP_LEVEL:
            yield f"{key}: unknown key; known are {', '.join(_TOP_LEVEL)}"
        elif (expected := _TOP_LEVEL[key]) and (fault := type_fault(value, expected)):
            yield f"{key}: {fault}"
    root = document.get("root")
    if isinstance(root, str) and root and not Path(root).is_absolute():
        yield f"root: expected an absolute path, got {root!r}"
    version = document.get("version")
    if isinstance(version, int) and version not in VERSIONS:
        yield f"version: expected one of {', '.join(map(str, VERSIONS))}, got {version}"
    elif version is None and "plugins" in document:
        yield "version: missing, which means 1; write version = 3"


def _plugin_faults(document: Table) -> Iterator[str]:
    tables = document.get("plugins", {})
    for name in tables if isinstance(tables, dict) else ():
        if name in DRIVERS:
            yield f'plugins.{name}: a name of version 1; write plugins."{PLUGIN_TYPE}.{name}"'
    for uri, table in _snapshotter_tables(document):
        where = f'plugins."{uri}"'
        if fault := type_fault(table, dict):
            yield f"{where}: {fault}"
        elif plugin := _plugin(uri):
            yield from (f"{where}.{fault}" for fault in key_faults(plugin.config, table))
        elif (near := get_close_matches(_id(uri), known(), n=1)) and near[0] != _id(uri):
            yield f"{where}: no such snapshotter; did you mean {near[0]}"


def _daemon_faults(document: Table) -> Iterator[str]:
    for name, place, table in daemon_tables(document):
        if not isinstance(table, dict):
            if place.startswith("plugins"):  # those at the top are checked there
                yield f"{place}: {type_fault(table, dict)}"
        else:
            yield from (f"{place}.{fault}" for fault in daemon_key_faults(name, table))


def _snapshotter_tables(document: Table) -> Iterator[tuple[str, Any]]:
    tables = document.get("plugins")
    for uri, table in tables.items() if isinstance(tables, dict) else ():
        if uri.startswith(PLUGIN_TYPE + "."):
            yield uri, table


def _id(uri: str) -> str:
    return uri.removeprefix(PLUGIN_TYPE + ".")


def _plugin(uri: str) -> AnyPlugin | None:
    """Return the snapshotter of that section; None where this version cannot check its keys."""
    try:
        return find(_id(uri))
    except LaminaError:
        return None  # not built yet, unknown or broken: `plugins ls` says which
