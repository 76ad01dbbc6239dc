"""Puts an image from an OCI layout on disk into a registry."""

from __future__ import annotations

import json
from pathlib import Path

from tests.fixtures_registry import LocalRegistry


def push_layout(registry: LocalRegistry, layout: Path, repository: str) -> str:
    """Upload the layout's only image, tag it `latest`, and return its reference."""
    blobs = layout / "blobs" / "sha256"
    index = json.loads((layout / "index.json").read_text())
    manifest = (blobs / _hex(index["manifests"][0])).read_bytes()
    document = json.loads(manifest)
    contents = [document["config"], *document["layers"]]
    data = ((blobs / _hex(descriptor)).read_bytes() for descriptor in contents)
    registry.push(manifest, data, repository, "latest")
    return f"{registry.host}/{repository}:latest"


def _hex(descriptor: dict[str, str]) -> str:
    return descriptor["digest"].removeprefix("sha256:")
