"""containerd's CRI tells kubelet where Lamina keeps layers, and how much they take."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.fixtures_containerd import Containerd, config_version, started
from tests.fixtures_registry import LocalRegistry
from tests.fixtures_serve import Serve, documented, localised, proxied_containerd, serving
from tests.images import Layer, image

pytestmark = [pytest.mark.containerd, pytest.mark.registry, pytest.mark.go]

SIZE = 3 << 20
SECONDS = 60.0


class Usage(NamedTuple):
    """What ImageFsInfo says of one filesystem."""

    directory: Path
    used: int
    inodes: int


def image_filesystem(program: Path, daemon: Containerd, *options: str) -> Usage:
    done = subprocess.run(
        (program, "-address", daemon.address, *options), capture_output=True, text=True
    )
    assert done.returncode == 0, f"{done.stderr}{daemon.log.read_text()[-3000:]}"
    (found,) = json.loads(done.stdout)["imageFilesystems"]
    return Usage(
        Path(found["fsId"]["mountpoint"]),
        int(found["usedBytes"].get("value", 0)),
        int(found["inodesUsed"].get("value", 0)),
    )


@pytest.fixture
def containerd_root(tmp_path: Path) -> Path:
    return tmp_path / "c/root"


@pytest.fixture
def serve(tmp_path: Path, containerd_root: Path) -> Iterator[Serve]:
    """Configured as documented: for a containerd that takes no `exports`, in its own directory."""
    daemon = Serve(tmp_path / "s")
    if config_version() == 2:
        config = localised(documented("Disk usage and kubelet"), daemon, containerd_root)
        daemon = Serve(tmp_path / "s", config)
    with serving(daemon):
        yield daemon


def directory_of(serve: Serve, name: str) -> Path:
    """Return what `plugins ls` says that `exports.root` has to be."""
    (root,) = [
        plugin["Exports"]["root"]
        for plugin in serve.command.json(*serve.options, "plugins", "ls", "--json")
        if plugin["ID"] == name
    ]
    return Path(root)


def test_image_filesystem(
    tmp_path: Path, serve: Serve, registry: LocalRegistry, imagefs_program: Path
) -> None:
    files = image(Layer.of({"etc/data": bytes(SIZE)}), Layer.of({"etc/more": bytes(SIZE)}))
    registry.push(files.manifest, files.blobs, "test/usage", "latest")
    with started(proxied_containerd(tmp_path / "c", serve, cri=True)) as containerd:
        said = image_filesystem(imagefs_program, containerd)
        assert said.directory == directory_of(serve, "overlayfs")
        assert said.directory.is_dir()
        assert said.used == 0

        reference = f"{registry.host}/test/usage:latest"
        image_filesystem(imagefs_program, containerd, "-pull", reference)
        deadline = time.monotonic() + SECONDS
        while said.used < 2 * SIZE:
            assert time.monotonic() < deadline, f"{said} {containerd.log.read_text()[-3000:]}"
            time.sleep(0.2)
            said = image_filesystem(imagefs_program, containerd)
        assert said.used < 2 * SIZE + (1 << 20)
        assert said.inodes >= 4
