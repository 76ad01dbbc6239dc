"""What containerd's own configuration says of snapshotters that others serve."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from lamina.config.reader import imported_files
from lamina.errors import ConfigError

CONTAINERD_CONFIG = Path("/etc/containerd/config.toml")


def proxy_snapshotters(path: Path) -> dict[str, str]:
    """Return name -> address of the `[proxy_plugins]` that are snapshotters, imports included.

    Raises:
        ConfigError: a file cannot be read, or is not TOML.
    """
    found: dict[str, str] = {}
    pending, seen = [path], set()
    while pending:
        file = pending.pop()
        if file.resolve() in seen:
            continue
        seen.add(file.resolve())
        document = _read(file)
        proxies = document.get("proxy_plugins")
        for name, table in proxies.items() if isinstance(proxies, dict) else ():
            if isinstance(table, dict) and table.get("type") == "snapshot":
                found[name] = str(table.get("address", ""))
        pending += imported_files(file.parent, document)
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_bytes().decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(path, [f"not TOML: {error}"]) from error
    except OSError as error:
        raise ConfigError(path, [f"cannot be read: {error.strerror}"]) from error
