"""ext4 of layers on Linux 6.1, the oldest that is tested, which also writes to it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.ext4 import Image, fsck, mounted
from tests.hard_image import hard_image
from tests.trees import as_text, describe
from tests.vm.replay import REPOSITORY
from tests.vm.uml import Machine

pytestmark = [pytest.mark.uml, pytest.mark.root, pytest.mark.loop]

GUEST = """
import os, shutil, subprocess
from pathlib import Path
from tests.trees import as_text, describe

def run(*argv):
    subprocess.run(argv, check=True)

at = Path("/run/at")
at.mkdir()
run("mount", "-t", "ext4", "-o", "ro", "/dev/ubda", at)
with open("/run/shared/found", "w") as found:
    found.write(as_text(describe(at)))
    found.flush()
    os.fsync(found.fileno())
run("umount", at)
run("mount", "-t", "ext4", "/dev/ubda", at)
for number in range(200):
    (at / f"new{number}").write_bytes(b"x" * 5000)
    (at / f"dir{number}").mkdir()
shutil.rmtree(at / "etc")
run("umount", at)
"""


def test_layers_of_a_hard_image(tmp_path: Path) -> None:
    directory = tmp_path / "machine"
    directory.mkdir()
    with Image(tmp_path / "image", 64 << 30) as image:
        for layer in hard_image():
            image.apply(layer.blob)
        with mounted(image.path) as at:
            expected = as_text(describe(at))
        command: list[str | Path] = [sys.executable, "-c", GUEST]
        with Machine(directory, command, disks=[image.path], cwd=REPOSITORY) as machine:
            assert machine.wait() == 0, machine.console()
            assert (machine.shared / "found").read_text() == expected
        fsck(image.path)
        with mounted(image.path) as at:
            assert (at / "new199").read_bytes() == b"x" * 5000
            assert not (at / "etc").exists()
