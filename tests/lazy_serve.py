"""`lamina serve` with lazy images of a registry, and a containerd that gets all of it by a name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.fixtures_containerd import Containerd, config_version
from tests.fixtures_containers import wait_for
from tests.fixtures_registry import LocalRegistry
from tests.fixtures_serve import CRI_PLUGINS, Serve, documented, localised, serving
from tests.fixtures_stargz import end_lazy
from tests.isolation import mount_points

GC_SECONDS = 60.0
NAME = "images.test"
"""A registry's name that only `config_path` makes a host of."""
CONFIG = """version = 3
[plugins."io.containerd.snapshotter.v1.{snapshotter}"]
config_path = "{certs}"
docker_config = "{docker_config}"
no_background_fetch = true
"""
HOSTS = """server = "{url}"
[host."{url}"]
capabilities = ["pull", "resolve"]
"""
"""1.6 takes a file without a table of hosts for a broken one."""


class LazyServe:
    """What the tests of a lazy snapshotter under containerd need.

    Attributes:
        snapshotter: its name.
        registry: where `NAME` leads to.
        serve: is not started yet.
        storage: the snapshotter's.
        certs: directory with what says where `NAME` leads.
        docker_config: where credentials are looked for; there is no file yet.
    """

    def __init__(self, directory: Path, snapshotter: str, registry: LocalRegistry) -> None:
        self.snapshotter = snapshotter
        self.registry = registry
        self.certs = directory / "certs.d"
        (self.certs / NAME).mkdir(parents=True)
        (self.certs / NAME / "hosts.toml").write_text(HOSTS.format(url=f"http://{registry.host}"))
        self.docker_config = directory / "docker.json"
        config = CONFIG.format(
            snapshotter=snapshotter, certs=self.certs, docker_config=self.docker_config
        )
        self.serve = Serve(directory / "s", config)
        self.storage = self.serve.root / f"io.containerd.snapshotter.v1.{snapshotter}"

    def containerd(self, directory: Path, *, cri: bool = False) -> Containerd:
        """Return one that is configured as docs/containerd.md says; without CRI unless asked."""
        version = config_version()
        name = "containerd 2.x" if version == 3 else "containerd 1.6 and 1.7"
        document = documented(f"stargz with {name}").replace("stargz", self.snapshotter)
        config = localised(document, self.serve, directory / "root")
        config = config.replace("/etc/containerd/certs.d", str(self.certs))
        if not cri:
            top = f"version = {version}\n"
            off = f"{top}disabled_plugins = {json.dumps(CRI_PLUGINS[version])}\n"
            config = config.replace(top, off)
        return Containerd(directory, config=config)

    def infos(self) -> list[dict[str, Any]]:
        """Return what Lamina knows of each snapshot."""
        option = ("--snapshotter", self.snapshotter)
        names = [each["Name"] for each in self.serve.snapshots(self.snapshotter)]
        command = self.serve.command
        return [command.json("snapshots", *option, "info", name, "--json") for name in names]

    def committed_labels(self) -> list[dict[str, str]]:
        """Return the labels of each Committed snapshot."""
        return [info["Labels"] for info in self.infos() if info["Kind"] == "Committed"]

    def asked(self, digest: str) -> list[str]:
        """Return the lines of the registry's log that say who has read a blob."""
        log = self.registry.log.read_text().splitlines()
        return [line for line in log if '"GET' in line and digest in line]

    def assert_all_gone(self) -> None:
        wait_for(lambda: self.serve.snapshots(self.snapshotter) == [], seconds=GC_SECONDS)
        snapshots = self.storage / "snapshots"
        wait_for(lambda: list(snapshots.iterdir()) == [], seconds=GC_SECONDS)
        assert [point for point in mount_points() if point.startswith(f"{snapshots}/")] == []
        assert self.serve.command.out(*self.serve.options, "fsck") == ""


@contextmanager
def lazily_serving(
    directory: Path, snapshotter: str, registry: LocalRegistry
) -> Iterator[LazyServe]:
    """Serve for the body, and leave nothing that serves or is mounted."""
    made = LazyServe(directory, snapshotter, registry)
    with serving(made.serve):
        yield made
    end_lazy(made.serve.root)
