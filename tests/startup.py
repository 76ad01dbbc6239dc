"""Which modules a command imports: what its start-up costs, without timing anything."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

LAMINA = str(Path(sys.executable).with_name("lamina"))

HEAVY = frozenset(
    {"asyncio", "backports", "hashlib", "http", "importlib.metadata", "isal", "lamina.layer.apply"}
    | {"msgspec", "multiprocessing", "rich", "secrets", "socket", "ssl", "subprocess", "tempfile"}
    | {"urllib.request", "urllib3"}
)
"""What no short command has any use for."""


def imported(*arguments: str) -> set[str]:
    """Run `lamina` with these arguments to a good end, and name the modules it has imported."""
    argv = [sys.executable, "-X", "importtime", LAMINA, *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
    lines = done.stderr.splitlines()
    return {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
