"""The command line on a root directory with one unpacked image, `busybox`.

Run as `python -m tests.containers_program ROOT ARG...`: the verbs, the engine and the tables are
the product's own; only the image comes from a directory instead of a registry.
"""

from __future__ import annotations

import sys
from functools import cached_property
from pathlib import Path
from typing import Any

from lamina.cli.app import App
from lamina.cli.main import _run
from lamina.core.digest import Digest
from lamina.core.driver import Ability
from lamina.core.snapshot import Snapshotter
from lamina.images.manifest import parse_config
from lamina.meta.containers import ContainerStore
from lamina.meta.database import Database
from lamina.meta.launches import Launch
from lamina.meta.schema import MIGRATIONS
from lamina.snapshotters.engine import Engine
from lamina.snapshotters.overlayfs.driver import OverlayDriver

CHAIN_ID = Digest("sha256:" + "5" * 64)


class OneImageStore:
    """A store that has the image `busybox`, unpacked as CHAIN_ID; its config is `image.json`."""

    default_snapshotter = "overlayfs"

    def __init__(self, root: Path) -> None:
        self.root = root
        self._database = Database(root / "metadata.sqlite", MIGRATIONS)
        self.containers = ContainerStore(self._database)

    @cached_property
    def overlayfs(self) -> Engine:
        directory = self.root / "io.containerd.snapshotter.v1.overlayfs"
        directory.mkdir(exist_ok=True)
        driver = OverlayDriver(directory, abilities=frozenset(Ability))
        return Engine("overlayfs", driver, directory, sync_remove=True)

    def snapshotter(self, name: str | None = None) -> Snapshotter:
        assert name in {None, "", "overlayfs"}
        return self.overlayfs

    def launch(self, _: str, __: str | None = None) -> Launch:
        config = parse_config((self.root / "image.json").read_bytes())
        return Launch(CHAIN_ID, config.config.process)

    def close(self) -> None:
        self.overlayfs.close()
        self._database.close()


def main(root: Path, arguments: list[str]) -> int:
    """Run the command line with that store."""
    app = App()
    fields: dict[str, Any] = app.__dict__
    fields["store"] = OneImageStore(root)
    sys.argv = ["lamina", *arguments]
    return _run(app)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
