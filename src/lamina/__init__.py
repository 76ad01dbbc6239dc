"""Every containerd snapshotter in one Python package.

import lamina

with lamina.open("/var/lib/lamina") as store:
    store.pull("docker.io/library/debian:12")
    with store.checkout("docker.io/library/debian:12") as tree:
        (tree.path / "etc/motd").write_text("hello")
        tree.commit("docker.io/library/debian:hello")
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from lamina.version import VERSION as __version__

if TYPE_CHECKING:
    from lamina.store import Store

__all__ = ["__version__", "open"]

logging.getLogger(__name__).addHandler(logging.NullHandler())


def open(
    root: str | Path, *, config: str | Path | None = None, snapshotter: str = "overlayfs"
) -> Store:
    """Open the store at `root`, making it when absent; the caller closes it (or uses `with`).

    Args:
        root: a directory whose parent exists.
        config: a containerd configuration file, for the snapshotters' sections.
        snapshotter: the default one.

    Raises:
        NotFound: there is no such configuration file.
        ConfigError: it is wrong; has every problem found.
        PermissionDenied: the directory can be neither made nor written.
    """
    from lamina.config import load
    from lamina.store import Store

    loaded = load(Path(config)) if config is not None else None
    return Store(Path(root), config=loaded, default_snapshotter=snapshotter)
