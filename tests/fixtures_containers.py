"""A root directory with a busybox image, and the command line on it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from lamina.core.digest import Digest
from lamina.core.snapshot import Kind
from lamina.images.manifest import OCI_MANIFEST, Descriptor
from lamina.store import Store
from tests.archives import gnu_tar
from tests.fixtures_command import Command
from tests.images import OCI_LAYER, Layer, digest, image

IMAGE = "docker.io/library/busybox:latest"
APPLETS = """
    cat echo env false grep head hostname id kill ls mkdir mount pwd readlink sh sleep stty touch
    true tty wc
"""
WAIT_SECONDS = 60.0
"""For what takes a moment, and on a machine that others keep busy some more."""
_PASSWD = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n"
_GROUP = "root:x:0:\napp:x:1001:\nwheel:x:10:root,app\n"


@dataclass
class Machine:
    """A root directory with an image, and the id of a container there."""

    root: Path
    id: str
    command: Command

    def argv(self, *arguments: str) -> list[str]:
        return self.command.argv(*arguments)

    def lamina(
        self, *arguments: str, stdin: bytes = b"", code: int | None = 0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; `code` is what it must exit with, None for anything."""
        done = self.command.run(*arguments, code=code, input=stdin)
        return subprocess.CompletedProcess(
            done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
        )

    def run(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command line in a throw-away container."""
        return self.lamina("run", "--rm", "busybox", self.id, *arguments, **options)

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a command and leave it running, with a pipe for its standard input too."""
        return self.command.start(*arguments, stdin=subprocess.PIPE)

    def add_image(self, tar: bytes, config: Mapping[str, object]) -> None:
        """Add the image `busybox` of one layer; an earlier one loses the name."""
        files = image(Layer(tar, digest(tar), OCI_LAYER), config=config)
        with Store(self.root) as store:
            for blob in (*files.blobs, files.manifest):
                found = Descriptor(OCI_MANIFEST, Digest(digest(blob)), len(blob))
                store.images.content.put(blob, found)
            store.images.catalogue.put(IMAGE, found)
            store.unpack(IMAGE)

    def tasks(self) -> dict[str, tuple[int, str]]:
        """Return process id and status of each task."""
        found = json.loads(self.lamina("tasks", "ls", "--json").stdout)
        return {task["ID"]: (task["Pid"], task["Status"]) for task in found}

    def leftovers(self) -> list[str]:
        """Name what is there of containers: bundles, records, snapshots, mounts, cgroups."""
        bundles = self.root / "containers"
        found = [f"bundle {path.name}" for path in bundles.glob("*")]
        with Store(self.root) as store:
            found += [f"record {container.id}" for container in store.containers.list()]
            snapshots = store.snapshotter().walk()
            found += [f"snapshot {info.name}" for info in snapshots if info.kind != Kind.COMMITTED]
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        found += [f"mount {line}" for line in mounts if str(self.root) in line]
        # Not Path.glob, which fails where somebody else's group goes meanwhile.
        groups = (path for path, _, _ in os.walk("/sys/fs/cgroup"))
        own = f"*/lamina-*{self.id}*"
        return found + [f"cgroup {path}" for path in groups if fnmatch(path, own)]

    def running(self) -> bool:
        """Whether the container's task runs: it is listed before that, when it is just created."""
        return self.tasks().get(self.id, (0, ""))[1] == "RUNNING"

    def close(self) -> None:
        self.command.close()
        for id in self.lamina("tasks", "ls", "-q", code=None).stdout.split():
            self.lamina("tasks", "rm", "-f", id, code=None)
        for id in self.lamina("containers", "ls", "-q", code=None).stdout.split():
            self.lamina("containers", "rm", id, code=None)


@pytest.fixture
def machine(root_dir: Path, tmp_path: Path, container_id: str) -> Iterator[Machine]:
    root_dir.mkdir(mode=0o711, parents=True)
    config = {"Env": ["PATH=/bin", "FROM_IMAGE=yes"], "Cmd": ["echo", "from the image"]}
    rootfs = tmp_path / "busybox"
    rootfs.mkdir()
    make_rootfs(rootfs)
    machine = Machine(root_dir, container_id, Command(root_dir))
    machine.add_image(gnu_tar(rootfs), config)
    yield machine
    machine.close()


def wait_for(condition: Callable[[], object], *, seconds: float = WAIT_SECONDS) -> None:
    """Wait until the condition is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """Tell whether the process runs."""
    try:
        os.kill(pid, signal.SIG_DFL)
    except ProcessLookupError:
        return False
    return True


def make_rootfs(directory: Path) -> None:
    """Fill a directory with busybox and a few users."""
    busybox = shutil.which("busybox")
    assert busybox is not None, "the marker `runtime` asks for busybox-static"
    for name in ("bin", "etc", "tmp", "proc", "sys", "dev", "run"):
        (directory / name).mkdir()
    shutil.copy(busybox, directory / "bin/busybox")
    for applet in APPLETS.split():
        (directory / "bin" / applet).symlink_to("busybox")
    (directory / "etc/passwd").write_text(_PASSWD)
    (directory / "etc/group").write_text(_GROUP)
    (directory / "etc/hosts").touch()
    (directory / "etc/resolv.conf").touch()
