"""The Python examples of the documentation, run on a real registry and real mounts."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures_registry import LocalRegistry

REPOSITORY = Path(__file__).parents[2]
IMAGE = "docker.io/library/debian:bookworm"
ROOT = "/var/lib/lamina"


def examples(document: str) -> list[str]:
    text = (REPOSITORY / document).read_text()
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.mark.overlay
@pytest.mark.registry
@pytest.mark.parametrize("document", ["README.md", "docs/library.md"])
def test_examples_run(document: str, registry: LocalRegistry, tmp_path: Path) -> None:
    """Run a document's examples in order, as one program in a process of its own."""
    image = f"{registry.host}/library/debian:bookworm"
    subprocess.run((sys.executable, REPOSITORY / "script/demo_image.py", image), check=True)
    blocks = examples(document)
    assert blocks
    program = "\n".join(blocks).replace(IMAGE, image).replace(ROOT, str(tmp_path / "root"))
    assert image in program
    done = subprocess.run(
        (sys.executable, "-W", "error", "-c", program),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
