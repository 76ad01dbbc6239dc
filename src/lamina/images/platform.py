"""Platforms: how they are written, which is the machine's own, and which image fits one.

The rules are containerd's: names are normalised (`x86_64` is `amd64`, `aarch64` is `arm64`), and a
machine also runs what its older variants and 32-bit relatives run, the closest first.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from lamina.errors import InvalidArgument, NotFound
from lamina.images.manifest import REFERENCE_TYPE_ANNOTATION, Descriptor, Platform

_PART = re.compile(r"[A-Za-z0-9_.-]+", re.ASCII)
_KNOWN_OS = frozenset({"darwin", "freebsd", "linux", "netbsd", "openbsd", "solaris", "windows"})
_ARCHITECTURES = {
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "aarch64": ("arm64", ""),
    "i386": ("386", ""),
    "i686": ("386", ""),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
    "armv5l": ("arm", "v5"),
    "armv6l": ("arm", "v6"),
    "armv7l": ("arm", "v7"),
    "loongarch64": ("loong64", ""),
}


def default_platform() -> Platform:
    """Return the platform of the running kernel."""
    return normalize(Platform(os="linux", architecture=os.uname().machine))


def parse_platform(text: str) -> Platform:
    """Return the platform meant by `OS/ARCH[/VARIANT]`, `OS` or `ARCH`.

    Raises:
        InvalidArgument: another number of parts, or a part with odd characters.
    """
    parts = text.split("/")
    if not 1 <= len(parts) <= 3 or not all(_PART.fullmatch(part) for part in parts):
        raise InvalidArgument(
            "parse platform", text, hint="write OS/ARCH or OS/ARCH/VARIANT, such as linux/arm64"
        )
    if len(parts) == 1:
        own = default_platform()
        if parts[0].lower() in _KNOWN_OS:
            return Platform(os=parts[0].lower(), architecture=own.architecture)
        return normalize(Platform(os=own.os, architecture=parts[0]))
    variant = parts[2] if len(parts) == 3 else ""
    return normalize(Platform(os=parts[0], architecture=parts[1], variant=variant))


def format_platform(platform: Platform) -> str:
    """Write the platform as `OS/ARCH[/VARIANT]`; `unknown` without an operating system."""
    if not platform.os:
        return "unknown"
    return "/".join(p for p in (platform.os, platform.architecture, platform.variant) if p)


def normalize(platform: Platform) -> Platform:
    """Return the platform under its usual names; an implied variant (amd64 v1, arm64 v8) is ""."""
    system = platform.os.lower().replace("macos", "darwin")
    written = platform.architecture.lower()
    architecture, variant = _ARCHITECTURES.get(written, (written, ""))
    variant = platform.variant.lower() or variant
    if architecture == "arm":
        variant = variant or "v7"
    if architecture in {"arm", "arm64"} and variant[:1].isdigit():
        variant = f"v{variant}"
    if (architecture, variant) in {("amd64", "v1"), ("arm64", "v8")}:
        variant = ""
    return Platform(
        architecture=architecture,
        os=system,
        variant=variant,
        os_version=platform.os_version,
        os_features=platform.os_features,
    )


def runnable(platform: Platform) -> list[Platform]:
    """List what a machine of this platform runs, the best first: itself, then what it emulates."""
    own = normalize(platform)

    def variants(architecture: str, names: Sequence[str]) -> list[Platform]:
        return [Platform(architecture=architecture, os=own.os, variant=name) for name in names]

    if own.architecture == "amd64":
        older = _down_from(own.variant or "v1", 1)
        return variants("amd64", ["" if v == "v1" else v for v in older]) + variants("386", [""])
    if own.architecture == "arm64":
        newest = variants("arm64", [own.variant, ""] if own.variant else [""])
        return newest + variants("arm", _down_from("v8", 5))
    if own.architecture == "arm":
        return variants("arm", _down_from(own.variant, 5))
    return variants(own.architecture, [own.variant])


def rank(wanted: Platform, offered: Platform) -> int | None:
    """Tell how well an image for `offered` suits `wanted`: 0 is best, None means not at all."""
    found = normalize(offered)
    bare = Platform(architecture=found.architecture, os=found.os, variant=found.variant)
    choices = runnable(wanted)
    return choices.index(bare) if bare in choices else None


def candidates(manifests: Sequence[Descriptor], wanted: Platform) -> list[Descriptor]:
    """Return the entries of an index that may suit, best first.

    Entries that name no platform come last: only their configuration tells. Attestations, which
    BuildKit lists as `unknown/unknown`, are left out.

    Raises:
        NotFound: none suits; the hint lists what there is.
    """
    ranked: list[tuple[int, int, Descriptor]] = []
    images = [entry for entry in manifests if not is_attestation(entry)]
    for position, entry in enumerate(images):
        place = rank(wanted, entry.platform) if entry.platform is not None else 1 << 30
        if place is not None:
            ranked.append((place, position, entry))
    if not ranked:
        raise NotFound("find image for platform", format_platform(wanted), hint=_offer(images))
    return [entry for _, _, entry in sorted(ranked, key=lambda item: item[:2])]


def is_attestation(entry: Descriptor) -> bool:
    """Tell whether an entry of an index is a statement about an image instead of an image."""
    if REFERENCE_TYPE_ANNOTATION in entry.annotations:
        return True
    return entry.platform is not None and entry.platform.os == "unknown"


def _offer(images: Sequence[Descriptor]) -> str:
    known = sorted({format_platform(i.platform) for i in images if i.platform is not None})
    return f"it is there for {', '.join(known)}" if known else "its index lists no image"


def _down_from(variant: str, lowest: int) -> list[str]:
    """Return `v7`, `v6`, ... down to `lowest`; just the variant itself where it is no number."""
    number = variant.removeprefix("v")
    if not number.isdecimal():
        return [variant]
    return [f"v{n}" for n in range(min(int(number), 99), lowest - 1, -1)] or [variant]
