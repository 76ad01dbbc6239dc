"""The systemd unit that activates a pool at boot."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from lamina.tools import systemctl

_UNITS = Path("etc/systemd/system")
_BOOTED = Path("run/systemd/system")
"""Where systemd runs the machine, sd_booted(3)."""
_UNSAFE = re.compile(r"[^A-Za-z0-9:_.-]")
_QUOTED = re.compile(r"[\"\\$%]")
_MACHINE = Path("/")


class BootUnit:
    """The unit of one pool.

    Args:
        device: the name of the pool's device.
        root: of the system whose units these are.
    """

    def __init__(self, device: str, *, root: Path = _MACHINE) -> None:
        self._root = root
        escaped = _UNSAFE.sub(lambda match: f"\\x{ord(match[0]):02x}", device)
        self.name = f"lamina-devmapper-{escaped}.service"
        self.path = root / _UNITS / self.name

    def possible(self) -> bool:
        """Whether systemd runs the machine."""
        return (self._root / _BOOTED).is_dir()

    def install(self, text: str) -> bool:
        """Write and enable it; return whether that changed anything.

        Raises:
            ToolError: systemctl refuses.
        """
        if self.path.exists() and self.path.read_text() == text:
            systemctl.enable(self.name, root=self._root)
            return False
        self.path.parent.mkdir(parents=True, exist_ok=True)
        nascent = self.path.with_name(f".{self.name}.new")
        nascent.write_text(text)
        nascent.replace(self.path)
        systemctl.enable(self.name, root=self._root)
        return True

    def remove(self) -> bool:
        """Disable and remove it; return whether it was there."""
        if not self.path.exists():
            return False
        systemctl.disable(self.name, root=self._root)
        self.path.unlink(missing_ok=True)
        return True


def unit_text(device: str, command: Sequence[str], *, places: Sequence[Path]) -> str:
    """Return the unit's text.

    Args:
        device: the name of the pool's device.
        command: activates it.
        places: directories whose disks must be mounted first.
    """
    mounts = " ".join(_quoted(str(place)) for place in places)
    return f"""\
# Written by `lamina devmapper setup`, and removed by its teardown.
[Unit]
Description=Thin pool {device.replace("%", "%%")} for the devmapper snapshotter
RequiresMountsFor={mounts}
After=lvm2-monitor.service systemd-modules-load.service
Before=lamina.service containerd.service docker.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={" ".join(map(_quoted, command))}

[Install]
WantedBy=multi-user.target
"""


def _quoted(word: str) -> str:
    """Return a word as systemd.syntax(7) and its specifiers have it."""
    escaped = _QUOTED.sub(lambda match: _ESCAPES[match[0]], word)
    return f'"{escaped}"' if escaped != word or " " in word else word


_ESCAPES = {'"': '\\"', "\\": "\\\\", "$": "$$", "%": "%%"}
