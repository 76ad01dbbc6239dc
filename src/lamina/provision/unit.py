"""A systemd unit that brings back at boot what was set up."""

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
    """One unit.

    Args:
        name: its name without `.service`; may have any characters.
        root: of the system whose units these are.
    """

    def __init__(self, name: str, *, root: Path = _MACHINE) -> None:
        self._root = root
        escaped = _UNSAFE.sub(lambda match: f"\\x{ord(match[0]):02x}", name)
        self.name = f"{escaped}.service"
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


def unit_text(
    description: str,
    command: Sequence[str],
    *,
    stop: Sequence[str] = (),
    writer: str,
    places: Sequence[Path],
    after: Sequence[str] = ("systemd-modules-load.service",),
    module: str = "",
) -> str:
    """Return a unit's text: it runs a command once at boot, before Lamina and containerd.

    Args:
        description: what it brings back.
        command: does that.
        stop: takes it back when the machine goes down; nothing is done without.
        writer: the command that removes the unit too, such as `lamina devmapper setup`.
        places: directories whose disks must be mounted first.
        after: units that must have started before.
        module: of the kernel, loaded first where it is one.
    """
    mounts = " ".join(quoted(str(place)) for place in places)
    stopping = f"ExecStop={_line(stop)}\n" if stop else ""
    loading = f"ExecStartPre=-modprobe {module}\n" if module else ""
    return f"""\
# Written by `{writer}`, and removed by its teardown.
[Unit]
Description={description.replace("%", "%%")}
RequiresMountsFor={mounts}
After={" ".join(after)}
Before=lamina.service containerd.service docker.service

[Service]
Type=oneshot
RemainAfterExit=yes
{loading}ExecStart={_line(command)}
{stopping}
[Install]
WantedBy=multi-user.target
"""


def quoted(word: str) -> str:
    """Return a word as systemd.syntax(7) and its specifiers have it."""
    escaped = _QUOTED.sub(lambda match: _ESCAPES[match[0]], word)
    return f'"{escaped}"' if escaped != word or " " in word else word


def _line(words: Sequence[str]) -> str:
    return " ".join(map(quoted, words))


_ESCAPES = {'"': '\\"', "\\": "\\\\", "$": "$$", "%": "%%"}
