"""Snapshots for user namespaces: labels map their owners."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from lamina.core.driver import Ability
from lamina.core.labels import GID_MAPPING, UID_MAPPING
from lamina.core.snapshot import Snapshotter
from lamina.mount import temp_mount
from lamina.testing.checks.layers import chown, commit_layer, write
from lamina.testing.subject import require


class MappingChecks:
    """Owners, for drivers that declare `remap-ids`."""

    def test_remapped_ids(
        self, snapshotter: Snapshotter, abilities: frozenset[Ability], work: Path
    ) -> None:
        """With mapping labels a mount shows the owners that a user namespace has on the host."""
        require(Ability.REMAP_IDS, abilities)
        mapped = {UID_MAPPING: "0:100000:65536", GID_MAPPING: "0:200000:65536"}
        commit_layer(snapshotter, work, [write("file", "one"), chown("file", 1, 2)], "base")
        commit_layer(snapshotter, work, [write("more", "two"), chown("more", 3, 4)], "top", "base")
        below = {"file": (100001, 200002)}
        expected = {"": {}, "base": below, "top": {**below, "more": (100003, 200004)}}
        for parent, owners in expected.items():
            with temp_mount(
                snapshotter.view(f"view {parent}", parent, labels=mapped), dir=work
            ) as root:
                assert _owners(root) == {".": (100000, 200000), **owners}
            mounts = snapshotter.prepare(f"active {parent}", parent, labels=mapped)
            for _ in range(2):  # mounted anew, everything is as it was
                with temp_mount(mounts, dir=work) as root:
                    subprocess.run(
                        ["touch", "new"], cwd=root, user=100000, group=200000, extra_groups=[],
                        check=True,
                    )  # fmt: skip
                    made = dict.fromkeys((".", "new"), (100000, 200000))
                    assert _owners(root) == made | owners
        with temp_mount(snapshotter.view("plain", "top"), dir=work) as root:
            assert _owners(root) == {".": (0, 0), "file": (1, 2), "more": (3, 4)}


def _owners(root: Path) -> dict[str, tuple[int, int]]:
    found = {name: os.lstat(root / name) for name in (".", *(path.name for path in root.iterdir()))}
    return {name: (status.st_uid, status.st_gid) for name, status in found.items()}
