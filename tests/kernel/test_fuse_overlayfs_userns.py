"""fuse-overlayfs in a user namespace, whose root may mount neither devices nor id maps."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.linux.userns import new_user_namespace
from tests.archives import gnu_tar
from tests.fixtures_containers import make_rootfs
from tests.fixtures_registry import LocalRegistry
from tests.images import OCI_LAYER, Layer, digest, image
from tests.startup import LAMINA

pytestmark = [pytest.mark.root, pytest.mark.fuse, pytest.mark.userns, pytest.mark.registry]

MAP = "0 0 1\n1 100000 65535\n"
"""The first user keeps its number, so that what belongs to it can be read: not its privileges."""
PULL = """
set -eu
lamina() { "$LAMINA" --root "$ROOT" "$@"; }
lamina images pull --plain-http --snapshotter fuse-overlayfs "$REF"
"""


@pytest.fixture
def namespace() -> Iterator[int]:
    """A user namespace with a range of ids, as newuidmap gives one to a user."""
    fd = new_user_namespace(MAP, MAP)
    yield fd
    os.close(fd)


@pytest.fixture
def reference(tmp_path: Path, registry: LocalRegistry) -> str:
    """An image whose second layer deletes, and has files of several owners."""
    rootfs = tmp_path / "busybox"
    rootfs.mkdir()
    make_rootfs(rootfs)
    (rootfs / "etc/gone").touch()
    (rootfs / "etc/app").write_text("app's")
    os.chown(rootfs / "etc/app", 1000, 1001)
    (rootfs / "etc/hidden").mkdir()
    (rootfs / "etc/hidden/x").touch()
    base = gnu_tar(rootfs)
    above = Layer.of({"etc/.wh.gone": b"", "etc/hidden/.wh..wh..opq": b"", "etc/hidden/y": b"y"})
    files = image(Layer(base, digest(base), OCI_LAYER), above, config={"Cmd": ["id"]})
    registry.push(files.manifest, files.blobs, "test", "1")
    return f"{registry.host}/test:1"


def inside(
    namespace: int, root: Path, reference: str, script: str
) -> subprocess.CompletedProcess[str]:
    """Run a shell script as root of the namespace, with mounts and processes of its own."""
    own = ("unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child")
    entered = ("nsenter", f"--user=/proc/self/fd/{namespace}", "--setuid", "0", "--setgid", "0")
    return subprocess.run(
        (*entered, *own, "sh", "-c", PULL + script),
        env=os.environ | {"LAMINA": str(LAMINA), "ROOT": str(root), "REF": reference},
        pass_fds=(namespace,),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


RUN = """
run() { lamina run --rm --snapshotter fuse-overlayfs "$@"; }
run "$REF" "$ID" sh -c '
    mount | grep " / "
    ls -ln /etc/app
    echo new > /etc/new && rm /etc/app && chown 1000:1001 /etc/new
    ls /etc /etc/hidden'
lamina snapshots --snapshotter fuse-overlayfs ls
"""
LOOK = r"""
served() {
    cat /proc/[0-9]*/cmdline 2> /dev/null | tr '\0' ' ' | grep -q "[f]use-overlayfs overlay"
}
for i in $(seq 50); do served || break; sleep 0.1; done
if served; then exit 9; fi
lamina fsck
lamina doctor | grep -e '^Best' -e '^ok *fuse-overlayfs'
"""


@pytest.mark.runtime
@pytest.mark.overlay
def test_pull_run_and_leave_nothing(
    namespace: int, root_dir: Path, reference: str, container_id: str
) -> None:
    root_dir.mkdir(mode=0o711)
    script = f"ID={container_id}\n{RUN}{LOOK}"
    done = inside(namespace, root_dir, reference, script)
    assert done.returncode == 0, done.stderr
    assert "fuse-overlayfs on / type fuse.fuse-overlayfs" in done.stdout
    assert "1000     1001             5" in done.stdout
    words = done.stdout.split()
    assert {"new", "hidden", "y"} <= set(words)
    assert not {"gone", "x", "Active"} & set(words)
    assert "Best here: overlayfs" in done.stdout, "the kernel's own is preferred where it works"
    assert "fuse-overlayfs  its driver was loaded" in done.stdout
