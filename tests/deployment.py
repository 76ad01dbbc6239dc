"""The files of deploy/, read."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).parents[1]
DEPLOY = REPOSITORY / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
DROP_INS = sorted((DEPLOY / "containerd").glob("*.toml"))


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def toml(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text())


DAEMON_SET = documents(KUBERNETES / "base/daemonset.yaml")[0]
POD = DAEMON_SET["spec"]["template"]["spec"]
CONTAINER = POD["containers"][0]
