"""Which layers have the files that a container of a real Debian opens."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

from lamina.core.digest import Digest
from lamina.errors import NotFound
from lamina.image_recording import record_image, recorded_before
from lamina.images.manifest import OCI_MANIFEST, Descriptor
from lamina.images.recording import parse_record
from lamina.runtime.recording import Until
from lamina.runtime.spec import SpecOptions
from lamina.store import Store
from tests.images import OCI_LAYER, Layer, digest, image

pytest_plugins = ["tests.fixtures_debian"]
pytestmark = [pytest.mark.root, pytest.mark.runtime, pytest.mark.overlay, pytest.mark.debian]

IMAGE = "docker.io/library/debian:test"
ABOVE = {
    "etc/debian_version": b"of the layer above\n",
    "etc/.wh.issue": b"",
    "opt/": None,
    "opt/script": b"#!/bin/sh\nread line </etc/debian_version\ntest ! -e /etc/issue\n",
}


@pytest.fixture
def store(root_dir: Path, debian_rootfs_tar: Path) -> Iterator[Store]:
    base = debian_rootfs_tar.read_bytes()
    layers = [Layer(base, digest(base), OCI_LAYER), Layer.of(ABOVE)]
    files = image(*layers, config={"Cmd": ["/bin/sh", "/opt/script"], "Env": ["LANG=C"]})
    root_dir.mkdir(mode=0o711, parents=True)
    with Store(root_dir) as store:
        for blob in (*files.blobs, files.manifest):
            found = Descriptor(OCI_MANIFEST, Digest(digest(blob)), len(blob))
            store.images.content.put(blob, found)
        store.images.catalogue.put(IMAGE, found)
        yield store


def test_debian(store: Store, tmp_path: Path) -> None:
    recorded = record_image(store, IMAGE, until=Until(60.0))
    assert recorded.run.code == 0
    layers = {os.fsdecode(file.path): file.layer for file in recorded.files.files}
    assert list(layers)[:2] == ["etc/passwd", "etc/group"]
    assert layers["opt/script"] == layers["etc/debian_version"] == 1
    # Executed, its interpreter, loaded by that, read by the program, and by the script.
    ends = ["/dash", "/ld-linux-*.so.*", "/libc.so.6", "opt/script", "etc/debian_version"]
    matching = [path for path in layers if any(fnmatch(path, f"*{end}") for end in ends)]
    assert len(matching) == len(ends)
    assert all(fnmatch(path, f"*{end}") for path, end in zip(matching, ends, strict=True))
    assert recorded.files.others == []
    assert "etc/issue" not in layers

    (tmp_path / "record").write_bytes(recorded.lines())
    assert parse_record(recorded.lines()) == recorded.files.files
    assert recorded_before(store, IMAGE, tmp_path / "record")[1] == recorded.files

    # The user's wishes count, and what the container makes is none of the image.
    options = SpecOptions(env=["NAME=made"], user="www-data", cwd="/tmp")
    command = ["sh", "-c", 'cat /etc/hostname /etc/shells >"$NAME"; id -un; cat made >/dev/null']
    recorded = record_image(store, IMAGE, command, options=options, until=Until(60.0))
    assert recorded.run.code == 0
    assert recorded.files.others == [b"tmp/made"]
    paths = [file.path for file in recorded.files.files]
    assert b"etc/shells" in paths
    assert b"usr/bin/cat" in paths or b"bin/cat" in paths

    # Without the blobs nothing could be said of layers, so that nothing is run.
    store.images.content.delete(recorded.image.manifest.layers[0].digest)
    with pytest.raises(NotFound, match=r"blob of a layer.*pull"):
        record_image(store, IMAGE)
