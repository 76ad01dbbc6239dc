"""The erofs snapshotter's configuration, with containerd's keys and defaults."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lamina.core.units import parse_size
from lamina.errors import FailedPrecondition, InvalidArgument
from lamina.snapshotters.erofs_support import (
    EROFS_MOUNTS,
    OVERLAY_MOUNTS,
    check,
    loaded,
    require,
)
from lamina.snapshotters.plugin import SnapshotterConfig, SnapshotterPlugin

if TYPE_CHECKING:
    from lamina.core.driver import Driver
    from lamina.snapshotters.erofs.driver import ErofsDriver

ID = "erofs"
_MODES = ("auto", "on", "off")
_OWN_OPTIONS = ("lowerdir", "upperdir", "workdir")


@dataclass(frozen=True, slots=True, kw_only=True)
class ErofsConfig(SnapshotterConfig):
    """`[plugins."io.containerd.snapshotter.v1.erofs"]`.

    Attributes:
        ovl_mount_options: further options of every overlay mount.
        enable_fsverity: seal images by fs-verity, and mount none that is not sealed.
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
            found.append(
                'dmverity_mode: dm-verity is not there; "auto" and "off" go without,'
                " enable_fsverity has the kernel check images"
            )
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
    return loaded(ID, root, lambda: _driver(config, root))


def _driver(config: ErofsConfig, root: Path) -> ErofsDriver:
    from lamina.snapshotters import overlay_support
    from lamina.snapshotters.erofs.driver import ErofsDriver

    _require_immutable(config, root)
    _require_verity(config, root)
    return ErofsDriver(
        root,
        abilities=overlay_support.abilities(slow_chown=False),
        mount_options=overlay_support.overlay_options(root, config.ovl_mount_options),
        immutable=config.set_immutable,
        verity=config.enable_fsverity,
    )


def _check(config: ErofsConfig, directory: Path) -> None:
    check(ID, directory)
    _require_immutable(config, directory)
    _require_verity(config, directory)


def _require_immutable(config: ErofsConfig, root: Path) -> None:
    if not config.set_immutable:
        return
    from lamina.snapshotters.erofs import immutable

    if reason := immutable.fault(root):
        raise FailedPrecondition(
            "protect images by set_immutable", f"{root}: {reason}",
            hint="leave set_immutable false, or move root_path to ext4, xfs or btrfs",
        )  # fmt: skip


def _require_verity(config: ErofsConfig, root: Path) -> None:
    if not config.enable_fsverity:
        return
    from lamina.snapshotters.erofs import verity

    if reason := verity.fault(root):
        raise FailedPrecondition(
            "seal images by enable_fsverity", f"{root}: {reason}",
            hint="leave enable_fsverity false, or move root_path to btrfs or to ext4 made with"
            " `mkfs.ext4 -O verity`, on a kernel with CONFIG_FS_VERITY",
        )  # fmt: skip


def _probe(config: ErofsConfig, directory: Path) -> None:
    for need in NEEDS:
        require(ID, need, need.probe(directory))


NEEDS = (EROFS_MOUNTS, OVERLAY_MOUNTS)

PLUGIN = SnapshotterPlugin(
    id=ID,
    config=ErofsConfig,
    load=_load,
    probe=_probe,
    check=_check,
    needs=NEEDS,
    rank=50,
    merit="each layer is one file that cannot change, which is quick to mount and to remove",
)
