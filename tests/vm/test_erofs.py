"""Images on Linux 6.1, the oldest that is tested. It mounts no files: on loop devices."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.erofs import Data, described, everything, make_image
from tests.trees import as_text
from tests.vm.replay import REPOSITORY
from tests.vm.uml import Machine

pytestmark = pytest.mark.uml

DESCRIBE = """
import os, shutil, subprocess, sys
from pathlib import Path
from tests.trees import as_text, describe

def run(*argv):
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()

def device(path):
    return run("losetup", "--find", "--show", "--read-only", shutil.copy(path, "/run/tmp"))

run("modprobe", "erofs")
image, *others = map(device, sys.argv[1:])
at = Path("/run/at")
at.mkdir()
run("mount", "-t", "erofs", "-o", ",".join(["ro", *(f"device={o}" for o in others)]), image, at)
with open("/run/shared/found", "w") as found:
    found.write(as_text(describe(at)))
    found.flush()
    os.fsync(found.fileno())
"""


def test_everything(tmp_path: Path) -> None:
    data = Data(2)
    root = everything(data)
    image = make_image(tmp_path / "image", root, data)
    directory = tmp_path / "machine"
    directory.mkdir()
    command: list[str | Path] = [sys.executable, "-c", DESCRIBE, image.path, *image.devices]
    with Machine(directory, command, cwd=REPOSITORY) as machine:
        assert machine.wait() == 0, machine.console()
        found = (machine.shared / "found").read_text()
    assert found == as_text(described(root, data))
