"""The erofs snapshotter's configuration, with containerd's keys and defaults."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lamina.core.units import parse_size
from lamina.errors import FailedPrecondition, InvalidArgument, SnapshotterSkipped
from lamina.snapshotters.plugin import Need, SnapshotterConfig, SnapshotterPlugin

if TYPE_CHECKING:
    from lamina.core.driver import Driver

ID = "erofs"
_MODES = ("auto", "on", "off")
_OWN_OPTIONS = ("lowerdir", "upperdir", "workdir")


@dataclass(frozen=True, slots=True, kw_only=True)
class ErofsConfig(SnapshotterConfig):
    """`[plugins."io.containerd.snapshotter.v1.erofs"]`.

    Attributes:
        ovl_mount_options: further options of every overlay mount.
        enable_fsverity: seal images by fs-verity; not there yet.
        set_immutable: protect images by the immutable flag.
        default_size: of a writable layer in a block device of its own; not there yet.
        dmverity_mode: check images by dm-verity; `on` is not there yet.
        layer_content_caches: directories with images of layers; not there yet.
    """

    ovl_mount_options: tuple[str, ...] = ()
    enable_fsverity: bool = False
    set_immutable: bool = False
    default_size: str = ""
    dmverity_mode: str = "auto"
    layer_content_caches: tuple[str, ...] = ()

    def problems(self) -> list[str]:
        """Return what is wrong, and what is right and not to be had from Lamina yet."""
        found = [
            f"ovl_mount_options: {option!r} is what the snapshotter sets itself"
            for option in self.ovl_mount_options
            if option.partition("=")[0].rstrip("+") in _OWN_OPTIONS
        ]
        if self.dmverity_mode not in _MODES:
            found.append(f"dmverity_mode: {self.dmverity_mode!r} is none of {', '.join(_MODES)}")
        if self.dmverity_mode == "on":
            found.append('dmverity_mode: dm-verity is not there yet; "auto" and "off" go without')
        if self.enable_fsverity:
            found.append("enable_fsverity: fs-verity is not there yet; leave it false")
        if self._size_problem():
            found.append(self._size_problem())
        if self.layer_content_caches:
            found.append("layer_content_caches: they are not there yet; leave the list empty")
        return found

    def _size_problem(self) -> str:
        if not self.default_size:
            return ""
        try:
            size = parse_size(self.default_size)
        except InvalidArgument as error:
            return f"default_size: {error}"
        if size:
            return "default_size: writable layers of a size are not there yet; leave it 0"
        return ""


def _load(config: ErofsConfig, root: Path) -> Driver:
    from lamina.linux.userns import in_user_namespace
    from lamina.snapshotters import overlay_support
    from lamina.snapshotters.erofs import immutable
    from lamina.snapshotters.erofs.driver import ErofsDriver

    if in_user_namespace():
        reason = "a user namespace may not mount EROFS"
        raise SnapshotterSkipped(ID, reason=reason, fix="run as the machine's root")
    root.mkdir(0o700, parents=True, exist_ok=True)
    if config.set_immutable and (reason := immutable.fault(root)):
        raise FailedPrecondition(
            "protect images by set_immutable", f"{root}: {reason}",
            hint="leave set_immutable false, or move root_path to ext4, xfs or btrfs",
        )  # fmt: skip
    driver = ErofsDriver(
        root,
        abilities=overlay_support.abilities(slow_chown=False),
        mount_options=overlay_support.overlay_options(root, config.ovl_mount_options),
        immutable=config.set_immutable,
    )
    try:
        overlay_support.require_d_type(root)
    except BaseException:
        driver.close()
        raise
    return driver


def _overlay(directory: Path) -> str | None:
    from lamina.linux import probes

    return probes.overlay(directory)


def _image(directory: Path) -> str | None:
    from lamina.snapshotters.erofs_trial import mount_fault

    return mount_fault(directory)


def _probe(config: ErofsConfig, directory: Path) -> None:
    for need in NEEDS:
        reason = need.probe(directory)
        if reason is not None:
            raise SnapshotterSkipped(ID, reason=f"{need.what}: {reason}", fix=need.fix)


NEEDS = (
    Need(
        what="EROFS mounts",
        tried="mount an image of one file",
        probe=_image,
        fix="modprobe erofs, and run as root",
    ),
    Need(
        what="overlay mounts",
        tried="mount an overlay with an upper directory",
        probe=_overlay,
        fix="modprobe overlay, and run as root; or --root DIR on ext4, xfs or btrfs",
    ),
)

PLUGIN = SnapshotterPlugin(
    id=ID,
    config=ErofsConfig,
    load=_load,
    probe=_probe,
    needs=NEEDS,
    rank=50,
    merit="each layer is one file that cannot change, which is quick to mount and to remove",
)
