"""containerd's configuration file, as far as it concerns snapshotters and their daemon.

A file that containerd 1.x or 2.x reads (version 2 and up) is read as it is: what Lamina has no use
for is passed over, what it uses is checked completely, and all faults are reported together.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from lamina.config.section import fill, key_faults
from lamina.errors import ConfigError, NotFound, SnapshotterSkipped

if TYPE_CHECKING:
    from lamina.config.daemon import Daemon
    from lamina.snapshotters.plugin import SnapshotterConfig, SnapshotterPlugin

    ConfigT = TypeVar("ConfigT", bound=SnapshotterConfig)

__all__ = ["Config", "load"]

Section = Mapping[str, object]


class Config(NamedTuple):
    """What a configuration file says; an instance without arguments is all defaults.

    Attributes:
        path: the file, None where there is none.
        root: where everything is kept; None where the file does not say.
        disabled: plugin URIs in `disabled_plugins`.
        sections: the `[plugins."io.containerd.snapshotter.v1.ID"]` tables by URI, imports merged.
        daemon_tables: the tables of `lamina.config.daemon` by the section's name, imports merged.
    """

    path: Path | None = None
    root: Path | None = None
    disabled: frozenset[str] = frozenset()
    sections: Mapping[str, Section] = MappingProxyType({})
    daemon_tables: Mapping[str, Section] = MappingProxyType({})

    @property
    def daemon(self) -> Daemon:
        """How the daemon is to listen, log and be watched; defaults filled in."""
        from lamina.config.daemon import daemon  # for one verb of many

        return daemon(self.daemon_tables)

    def snapshotter(self, plugin: SnapshotterPlugin[ConfigT]) -> ConfigT:
        """Return a snapshotter's configuration, defaults filled in.

        Raises:
            SnapshotterSkipped: the file disables it.
            ConfigError: its section has faults.
        """
        if plugin.uri in self.disabled:
            raise SnapshotterSkipped(
                plugin.id,
                reason=f"disabled by {self.path}",
                fix=f"remove {plugin.uri} from disabled_plugins there",
            )
        table = self.sections.get(plugin.uri, {})
        faults = key_faults(plugin.config, table)
        if not faults:
            section = fill(plugin.config, table)
            faults = section.problems()
        if faults:
            raise ConfigError(self.path, [f'plugins."{plugin.uri}".{fault}' for fault in faults])
        return section


def load(path: Path, *, missing_ok: bool = False) -> Config:
    """Read a configuration file and what it imports.

    Raises:
        NotFound: there is no such file, and `missing_ok` is false.
        ConfigError: it has faults; names all of them.
    """
    if not path.exists():
        if missing_ok:
            return Config()
        raise NotFound("read configuration", path, hint="name an existing file with --config")
    from lamina.config.reader import Reader  # with the TOML parser, which most calls do not need

    reader = Reader()
    reader.read(path)
    if reader.problems:
        raise ConfigError(path, reader.problems)
    return Config(
        path=path,
        root=Path(reader.root) if reader.root else None,
        disabled=frozenset(reader.disabled),
        sections=reader.sections,
        daemon_tables=reader.daemon,
    )
