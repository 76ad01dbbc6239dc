"""The DaemonSet's container as far as a process can be one: capabilities, command and probe."""

from __future__ import annotations

import os
import subprocess
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.api.channel import Channel
from lamina.api.client import RemoteSnapshotter
from lamina.linux.inode_flags import FS_IMMUTABLE_FL, get_flags, set_flags
from lamina.mount import temp_mount
from tests.deployment import CONTAINER, DROP_INS, KUBERNETES, toml
from tests.fixtures_containerd import config_version
from tests.kernel.test_snapshot_storage import populate
from tests.startup import LAMINA
from tests.trees import Entry, describe

pytestmark = pytest.mark.overlay

ROOT, SOCKETS = "/var/lib/lamina", "/run/lamina"


class Pod:
    """The container's process, with a directory of its own for each path of the node's."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.root = directory / "root"
        self.address = directory / "sockets/lamina.sock"
        for name in ("root", "sockets"):
            (directory / name).mkdir(0o700)
        config = (KUBERNETES / "base/config.toml").read_text().replace('":9810"', '""')
        (directory / "config.toml").write_text(self.here(config))

    def here(self, text: str) -> str:
        """Replace the node's paths by this pod's."""
        text = text.replace("/etc/lamina/", f"{self.directory}/")
        return text.replace(SOCKETS, f"{self.directory}/sockets").replace(ROOT, str(self.root))

    def argv(self, command: list[str]) -> list[str]:
        capabilities = ",".join(
            f"+{name.lower()}" for name in CONTAINER["securityContext"]["capabilities"]["add"]
        )
        assert command[0] == "lamina"
        words = [LAMINA, *map(self.here, command[1:])]
        return ["setpriv", f"--bounding-set=-all,{capabilities}", *words]

    def is_ready(self) -> bool:
        probe = self.argv(CONTAINER["readinessProbe"]["exec"]["command"])
        return subprocess.run(probe, capture_output=True).returncode == 0


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Pod]:
    made = Pod(tmp_path)
    process = subprocess.Popen(made.argv(CONTAINER["command"]))
    try:
        deadline = time.monotonic() + 20
        while not made.is_ready():
            assert process.poll() is None
            assert time.monotonic() < deadline
        yield made
    finally:
        process.terminate()
        assert process.wait(20) == 0


def make_immutable(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        set_flags(fd, get_flags(fd) | FS_IMMUTABLE_FL)
    except OSError:
        pass  # this filesystem has no such flag
    finally:
        os.close(fd)


def below(root: Path) -> dict[str, Entry]:
    """Describe all but the root itself, whose mode overlayfs has from its own directory."""
    return {name: entry for name, entry in describe(root).items() if name != "."}


@pytest.mark.parametrize("name", ["overlayfs", "native"])
def test_its_capabilities_are_enough(pod: Pod, tmp_path: Path, name: str) -> None:
    """Layers with all that a layer can have are copied, measured and removed."""
    with Channel(pod.address, timeout=60) as channel:
        snapshotter = RemoteSnapshotter(channel, f"lamina-{name}")
        with temp_mount(snapshotter.prepare("first"), dir=tmp_path) as root:
            populate(root)
            (root / "whiteout").unlink()  # overlayfs shows none
            (root / "private").mkdir()
            (root / "private/file").touch()
            os.chown(root / "private", 1000, 1000)
            (root / "private").chmod(0)
            expected = below(root)
        snapshotter.commit("layer", "first")
        with temp_mount(snapshotter.prepare("second", "layer"), dir=tmp_path) as root:
            assert below(root) == expected
            (root / "immutable").mkdir()
            make_immutable(root / "immutable")
        assert snapshotter.usage("second").inodes > 0
        for key in ("second", "layer"):
            snapshotter.remove(key)
        snapshotter.cleanup()
    storage = pod.root / f"io.containerd.snapshotter.v1.{name}/snapshots"
    assert list(storage.iterdir()) == []


@pytest.mark.containerd
def test_containerd_takes_its_drop_in(tmp_path: Path) -> None:
    version = config_version()
    [drop_in] = [path for path in DROP_INS if toml(path)["version"] == version]
    main = tmp_path / "config.toml"
    main.write_text(f'version = {version}\nimports = ["{drop_in}"]\n')
    command = ("containerd", "--config", main, "config", "dump")
    dumped = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    merged = tomllib.loads(dumped)
    given = toml(drop_in)
    assert (
        merged["proxy_plugins"]["lamina-overlayfs"].items()
        >= {
            key: given["proxy_plugins"]["lamina-overlayfs"][key] for key in ("type", "address")
        }.items()
    )
    for uri, section in given["plugins"].items():
        if "containerd" in section:
            runtimes = merged["plugins"][uri]["containerd"]["runtimes"]
            assert runtimes["lamina"]["runtime_type"] == "io.containerd.runc.v2"
