"""The stargz snapshotter's configuration, with the names that stargz-snapshotter's keys have."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lamina.errors import FailedPrecondition, SnapshotterSkipped
from lamina.snapshotters.plugin import Need, SnapshotterConfig, SnapshotterPlugin

if TYPE_CHECKING:
    from lamina.core.driver import Driver
    from lamina.lazy.served import GateName

ID = "stargz"
_GATES = ("auto", "fanotify", "fuse")
_GATE_FIX = "boot Linux 6.14 or newer, or modprobe fuse; run as root"


@dataclass(frozen=True, slots=True, kw_only=True)
class StargzConfig(SnapshotterConfig):
    """`[plugins."io.containerd.snapshotter.v1.stargz"]`.

    Attributes:
        gate: how missing bytes are asked for: `auto`, `fanotify`, `fuse` (Lamina's own key).
        config_path: a `certs.d` directory, with a `hosts.toml` for each registry.
        docker_config: a docker `config.json` with credentials (Lamina's own key).
        allow_no_verification: believe layers that whoever pulls says need no verification.
        disable_verification: verify nothing.
        no_background_fetch: fetch what is read, and nothing else.
        mount_options: further options of every overlay mount (Lamina's own key).
    """

    gate: str = "auto"
    config_path: str = ""
    docker_config: str = ""
    allow_no_verification: bool = False
    disable_verification: bool = False
    no_background_fetch: bool = False
    mount_options: tuple[str, ...] = ()

    def problems(self) -> list[str]:
        """Return what the types do not show."""
        if self.gate not in _GATES:
            return [f"gate: {self.gate!r} is none of {', '.join(_GATES)}"]
        return []


def _load(config: StargzConfig, root: Path) -> Driver:
    from lamina.linux.userns import in_user_namespace
    from lamina.snapshotters import overlay_support
    from lamina.snapshotters.stargz.access import Access
    from lamina.snapshotters.stargz.driver import StargzDriver
    from lamina.snapshotters.stargz.origin import Verification

    if in_user_namespace():
        reason = "a user namespace may not mount EROFS"
        raise SnapshotterSkipped(ID, reason=reason, fix="run as the machine's root")
    root.mkdir(0o700, parents=True, exist_ok=True)
    driver = StargzDriver(
        root,
        gate=_gate(config),
        access=Access(config.config_path, config.docker_config),
        verification=Verification(config.disable_verification, config.allow_no_verification),
        completes=not config.no_background_fetch,
        abilities=overlay_support.abilities(slow_chown=False),
        mount_options=overlay_support.overlay_options(root, config.mount_options),
    )
    try:
        overlay_support.require_d_type(root)
    except BaseException:
        driver.close()
        raise
    return driver


def _gate(config: StargzConfig) -> GateName | None:
    match config.gate:
        case "fanotify" | "fuse":
            return config.gate
        case _:
            return None


def _image(directory: Path) -> str | None:
    from lamina.snapshotters.erofs_trial import mount_fault

    return mount_fault(directory)


def _overlay(directory: Path) -> str | None:
    from lamina.linux import probes

    return probes.overlay(directory)


def _waiting(directory: Path) -> str | None:
    from lamina.lazy.gates.choice import choose_gate

    try:
        choose_gate(directory)
    except FailedPrecondition as error:
        return error.hint
    return None


def _probe(config: StargzConfig, directory: Path) -> None:
    from lamina.lazy.gates.choice import why_not

    gate = _gate(config)
    for need in NEEDS:
        if need.probe is _waiting and gate is not None:
            reason, fix = why_not(gate, directory), 'set gate = "auto"'
        else:
            reason, fix = need.probe(directory), need.fix
        if reason is not None:
            raise SnapshotterSkipped(ID, reason=f"{need.what}: {reason}", fix=fix)


NEEDS = (
    Need(
        what="overlay mounts",
        tried="mount an overlay with an upper directory",
        probe=_overlay,
        fix="modprobe overlay, and run as root; or --root DIR on ext4, xfs or btrfs",
    ),
    Need(
        what="EROFS mounts",
        tried="mount an image of one file",
        probe=_image,
        fix="modprobe erofs, and run as root",
    ),
    Need(
        what="reads that wait for what is fetched",
        tried="read a file behind fanotify, or else FUSE",
        probe=_waiting,
        fix=_GATE_FIX,
    ),
)

PLUGIN = SnapshotterPlugin(
    id=ID,
    config=StargzConfig,
    load=_load,
    probe=_probe,
    needs=NEEDS,
    rank=20,
    merit="images in eStargz or zstd:chunked run before they are fetched; others are unpacked",
)
