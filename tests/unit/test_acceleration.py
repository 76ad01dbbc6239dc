"""The layer of an overlaybd image that says what to prefetch."""

from __future__ import annotations

import io
import tarfile

from lamina.core.digest import Digest, sha256
from lamina.images.acceleration import make_acceleration, with_acceleration
from lamina.images.manifest import (
    OCI_CONFIG,
    OCI_LAYER,
    OCI_MANIFEST,
    Descriptor,
    History,
    ImageConfig,
    Manifest,
)
from lamina.images.tree import PlatformImage

LAYER = Descriptor(OCI_LAYER, sha256(b"layer"), 5)


def listed(layer: bytes) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
        [member] = archive.getmembers()
        assert (member.name, member.mode, member.isreg()) == ("trace", 0o444, True)
        file = archive.extractfile(member)
        assert file is not None
        return file.read()


def image(*steps: History) -> PlatformImage:
    config = Descriptor(OCI_CONFIG, sha256(b"{}"), 2)
    manifest = Manifest(config=config, layers=(LAYER,))
    return PlatformImage(
        Descriptor(OCI_MANIFEST, Digest(sha256(b"m")), 1), manifest, ImageConfig(history=steps), ()
    )


def test_is_a_list_of_paths_in_order() -> None:
    made = make_acceleration([b"usr/bin/env", b"etc/passwd", b"usr/bin/env", b"\xff"])
    assert listed(made.layer) == b"/usr/bin/env\n/etc/passwd\n/\xff\n"
    assert (made.paths, made.warnings) == (3, ())
    # What is written is the same every time.
    assert made == make_acceleration([b"usr/bin/env", b"etc/passwd", b"\xff"])


def test_what_a_line_cannot_say_is_left_out() -> None:
    made = make_acceleration([b"a\nb", b"a ", b"a*", b"./c/../ b"])
    assert listed(made.layer) == b"/ b\n"
    assert made.warnings == ("3 files are not prefetched: a list cannot have their names",)


def test_is_no_longer_than_overlaybd_reads() -> None:
    paths = [b"%0510d" % number for number in range(200)]
    made = make_acceleration(paths)
    assert len(listed(made.layer)) == 128 * 512 == 65536
    assert made.paths == 128
    assert made.warnings == (
        "the last 72 files are not prefetched: a list has 65536 bytes at most",
    )


def test_history_that_matches_the_layers_goes_on() -> None:
    steps = (History(created_by="one"), History(created_by="env", empty_layer=True))
    assert with_acceleration(image(*steps)) == [
        {"created_by": "one"},
        {"created_by": "env", "empty_layer": True},
        {"created_by": "Acceleration Layer"},
    ]
    assert with_acceleration(image()) is None
