"""The driver that docs/writing-a-driver.md builds, installed, tested and used as it says there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.filesystems import mounted
from tests.fixtures_registry import LocalRegistry

REPOSITORY = Path(__file__).parents[2]
DOCUMENT = (REPOSITORY / "docs/writing-a-driver.md").read_text()
IMAGE = "docker.io/library/debian:bookworm"
BIN = Path(sys.executable).parent

pytestmark = [pytest.mark.overlay, pytest.mark.registry, pytest.mark.runtime]


def files() -> dict[str, str]:
    """Return the document's files by name: blocks whose first line is a comment with the name."""
    return dict(re.findall(r"^```\w+\n# (\S+)\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL))


def commands() -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def test_it_is_short() -> None:
    lines = [line for line in files()["lamina_reflink.py"].splitlines() if line]
    assert len(lines) < 60


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The document's files, installed into `site` as pip installs a distribution."""
    directory = tmp_path_factory.mktemp("reflink")
    for name, content in files().items():
        (directory / name).write_text(content)
    offline = ("--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check")
    install = (sys.executable, "-m", "pip", "install", "--quiet", *offline)
    subprocess.run((*install, "--target", "site", "."), cwd=directory, check=True)
    return directory


def run(project: Path, command: str) -> str:
    """Run one of the document's commands; it must succeed."""
    done = subprocess.run(
        command,
        shell=True,
        cwd=project,
        env={
            **os.environ,
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "PYTHONPATH": str(project / "site"),
            "LAMINA_ROOT": str(project / "root"),
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_types(project: Path) -> None:
    config = ("--config-file", REPOSITORY / "pyproject.toml", "--cache-dir", project / "mypy")
    subprocess.run(
        (sys.executable, "-m", "mypy", *config, "lamina_reflink.py"),
        cwd=project,
        env={**os.environ, "MYPYPATH": str(REPOSITORY / "src")},
        check=True,
    )


def test_everything_works_as_written(project: Path, registry: LocalRegistry) -> None:
    image = f"{registry.host}/library/debian:bookworm"
    subprocess.run((sys.executable, REPOSITORY / "script/demo_image.py", image), check=True)
    said = {}
    for command in commands():
        if not command.startswith("pip install"):
            said[command] = run(project, command.replace(IMAGE, image))
    assert said.keys() >= {"pytest test_reflink.py", "lamina plugins ls"}
    assert "failed" not in said["pytest test_reflink.py"]
    assert re.search(r" \d\d passed", said["pytest test_reflink.py"])
    assert re.search(r"^\S+ +reflink +\S+ +ok *$", said["lamina plugins ls"], re.MULTILINE)
    ran = next(text for command, text in said.items() if command.startswith("lamina run"))
    assert ran == "hello from a layer of its own\n"
    tree = said["lamina snapshots --snapshotter reflink tree"]
    assert len(re.findall("sha256:", tree)) == 2


@pytest.mark.reflink
@pytest.mark.parametrize(("mkfs", "shares"), [("mkfs.xfs", True), ("mkfs.ext4", False)])
def test_reason_to_skip(project: Path, tmp_path: Path, mkfs: str, shares: bool) -> None:
    with mounted(tmp_path, mkfs, "-q") as root:
        said = run(project, f"lamina --config config.toml --root {root} plugins ls -d")
    assert ('or set mode = "auto"' in said) is not shares
