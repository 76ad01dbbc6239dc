"""Platforms: spelling, and which image is chosen."""

from __future__ import annotations

import pytest

from lamina.core.digest import sha256
from lamina.errors import InvalidArgument, NotFound
from lamina.images.manifest import OCI_MANIFEST, Descriptor, Platform
from lamina.images.platform import (
    candidates,
    default_platform,
    format_platform,
    normalize,
    parse_platform,
    rank,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("linux/amd64", "linux/amd64"),
        ("linux/x86_64", "linux/amd64"),
        ("linux/amd64/v1", "linux/amd64"),
        ("linux/amd64/v3", "linux/amd64/v3"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/aarch64", "linux/arm64"),
        ("Linux/ARM", "linux/arm/v7"),
        ("linux/armel", "linux/arm/v6"),
        ("linux/arm/6", "linux/arm/v6"),
        ("macos/arm64", "darwin/arm64"),
        ("s390x", "linux/s390x"),
    ],
)
def test_spellings(text: str, expected: str) -> None:
    assert format_platform(parse_platform(text)) == expected


def test_operating_system_alone() -> None:
    own = default_platform()
    assert parse_platform("windows") == Platform(os="windows", architecture=own.architecture)


@pytest.mark.parametrize("text", ["", "/", "a/b/c/d", "linux/", "linux/am d64", "linux/amd64\n"])
def test_bad_spellings(text: str) -> None:
    with pytest.raises(InvalidArgument, match="parse platform"):
        parse_platform(text)


@pytest.mark.parametrize(
    ("machine", "images", "best"),
    [
        ("linux/amd64", ["linux/arm64", "linux/amd64"], "linux/amd64"),
        ("linux/amd64/v3", ["linux/amd64", "linux/amd64/v2", "linux/amd64/v4"], "linux/amd64/v2"),
        ("linux/amd64", ["linux/amd64/v2", "linux/386"], "linux/386"),
        ("linux/arm64", ["linux/arm/v6", "linux/arm/v7"], "linux/arm/v7"),
        ("linux/arm64", ["linux/arm/v7", "linux/arm64/v8"], "linux/arm64"),
        ("linux/arm/v7", ["linux/arm/v5", "linux/arm/v6", "linux/arm64"], "linux/arm/v6"),
        ("linux/s390x", ["linux/amd64", "linux/s390x"], "linux/s390x"),
    ],
)
def test_choice(machine: str, images: list[str], best: str) -> None:
    entries = [entry(text) for text in images]
    chosen = candidates(entries, parse_platform(machine))[0]
    assert chosen.platform is not None
    assert format_platform(normalize(chosen.platform)) == best


@pytest.mark.parametrize(
    ("machine", "image"),
    [
        ("linux/amd64", "linux/amd64/v2"),
        ("linux/arm/v6", "linux/arm/v7"),
        ("linux/amd64", "windows/amd64"),
        ("linux/386", "linux/amd64"),
    ],
)
def test_what_does_not_run(machine: str, image: str) -> None:
    assert rank(parse_platform(machine), parse_platform(image)) is None


def test_attestations_are_no_images() -> None:
    attestation = entry("unknown/unknown")
    marked = entry("linux/amd64", {"vnd.docker.reference.type": "attestation-manifest"})
    with pytest.raises(NotFound, match="lists no image"):
        candidates([attestation, marked], parse_platform("linux/amd64"))


def test_entries_without_platform_come_last() -> None:
    unnamed = Descriptor(media_type=OCI_MANIFEST, digest=sha256(b"x"), size=1)
    named = entry("linux/amd64")
    assert candidates([unnamed, named], parse_platform("linux/amd64")) == [named, unnamed]


def entry(text: str, annotations: dict[str, str] | None = None) -> Descriptor:
    system, architecture, *variant = text.split("/")
    return Descriptor(
        media_type=OCI_MANIFEST,
        digest=sha256(text.encode()),
        size=1,
        annotations=annotations or {},
        platform=Platform(os=system, architecture=architecture, variant="".join(variant)),
    )
