"""Where a layer goes, and in which notation deletions are written there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lamina.core.mount import FUSE_OVERLAYFS, Mount, split_option, split_options, unescape_option
from lamina.linux.userns import in_user_namespace

_ID_MAPS = ("uidmap=", "gidmap=", "uidmapping=", "gidmapping=")


@dataclass(frozen=True, slots=True)
class LayerTarget:
    """A directory that receives the entries of one layer.

    Attributes:
        root: the directory; it must exist and nothing outside of it is touched.
        overlay_whiteouts: `.wh.X` becomes overlayfs's character device 0/0 and `.wh..wh..opq` its
            opaque attribute, since lower layers are stacked below later. Otherwise what they name
            is deleted from `root`.
        parents: directories of the lower layers, nearest first. A directory that a layer uses
            without describing it takes owner, mode, times and attributes from the first that
            has it.
        user_xattrs: write `user.overlay.opaque` (mount option `userxattr`), not `trusted.`.
        image: a file that does not exist, to get an EROFS image of what would be in `root`; that
            stays empty then, and says only whom the image's root belongs to.
    """

    root: Path
    overlay_whiteouts: bool = False
    parents: tuple[Path, ...] = ()
    user_xattrs: bool = False
    image: Path | None = None


def layer_target(mounts: Sequence[Mount], *, rebase: bool) -> LayerTarget | None:
    """Return where a layer can be extracted without mounting, or None where it cannot.

    An overlay is extracted into its upper directory, a writable bind mount into its source. So is a
    fuse-overlayfs, which reads deletions in overlayfs's notation. A caller who gets None mounts the
    list somewhere and extracts there with plain whiteouts: an aufs has a notation of its own.

    Args:
        mounts: what `prepare` returned.
        rebase: the snapshot was prepared without a parent and gets one at commit, so a bind
            mount's source will be stacked on lower layers that are not there yet.
    """
    if len(mounts) != 1 or mounts[0].read_only or mounts[0].target:
        return None
    mount = mounts[0]
    options = split_options(mount.options)
    if any(o.startswith(_ID_MAPS) for o in options):
        return None
    user_xattrs = "userxattr" in options or in_user_namespace()
    if mount.type in {"overlay", FUSE_OVERLAYFS}:
        upper = _value(options, "upperdir")
        parents = _paths(_value(options, "lowerdir"))
        return LayerTarget(Path(unescape_option(upper)), True, parents, user_xattrs)
    if mount.type in {"bind", "rbind"} or {"bind", "rbind"} & set(options):
        return LayerTarget(Path(mount.source), rebase, (), rebase and user_xattrs)
    return None


def _value(options: Sequence[str], name: str) -> str:
    prefix = f"{name}="
    return next((o[len(prefix) :] for o in options if o.startswith(prefix)), "")


def _paths(text: str) -> tuple[Path, ...]:
    return tuple(Path(unescape_option(path)) for path in split_option(text, ":") if path)
