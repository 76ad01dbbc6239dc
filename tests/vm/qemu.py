"""QEMU: a Debian kernel with ZFS, on processors that are emulated; `script/zfs-kernel` makes it.

Nothing is asked of the host's kernel: /dev/kvm is refused where machines are virtual themselves.
Whatever the guest computes takes ten to twenty times as long as outside: a Python starts in three
seconds.
"""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.probes import VIRTIOFSD, ZFS_KERNEL
from tests.vm import machine
from tests.vm.machine import LIMIT_SECONDS, MEMORY_MIB, STOP_SECONDS

PROCESSORS = 2


class Machine(machine.Machine):
    """A boot in QEMU; its root, and `shared`, come from processes that serve the host's files."""

    program = "qemu-system-x86_64"

    def __init__(
        self,
        directory: Path,
        command: Sequence[str | Path],
        *,
        files: Mapping[str, str] | None = None,
        environ: Mapping[str, str] | None = None,
        cwd: Path = Path("/"),
        limit_seconds: float = LIMIT_SECONDS,
    ) -> None:
        """Start it; see the base.

        Raises:
            subprocess.CalledProcessError: there is no kernel.
        """
        self._servers: list[subprocess.Popen[bytes]] = []
        self._kernel = kernel()
        try:
            super().__init__(
                directory,
                command,
                files=files,
                environ=environ,
                cwd=cwd,
                limit_seconds=limit_seconds,
            )
        except BaseException:
            self._stop_servers()
            raise

    def stop(self) -> None:
        """Cut the power, and end the processes that serve files."""
        super().stop()
        self._stop_servers()

    def _arguments(self, directory: Path) -> list[str]:
        root = self._serve(directory / "root.sock", Path("/"), cache="always")
        shared = self._serve(directory / "shared.sock", self.shared, cache="none")
        memory = f"{MEMORY_MIB}M"
        return [
            # QEMU 7.2 emulates cmpxchg16b with wrong flags, which no kernel survives.
            *("-accel", "tcg,thread=multi", "-cpu", "Nehalem,-cx16", "-smp", str(PROCESSORS)),
            # Shared, as the processes that serve files write into it.
            *("-object", f"memory-backend-memfd,id=mem,size={memory},share=on"),
            *("-numa", "node,memdev=mem", "-m", memory),
            *_filesystem("root", root),
            *_filesystem("shared", shared),
            *("-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio"),
            *("-no-reboot", "-kernel", str(self._kernel / "vmlinuz")),
            "-append",
            " ".join(
                (
                    *("rootfstype=virtiofs", "root=root", "ro", "console=ttyS0", "quiet"),
                    # Not tsc=reliable: on a busy machine the kernel may take the processor's clock
                    # for one that is eight times slower, and must see that it goes wrong.
                    *("panic=-1", "mitigations=off", "random.trust_cpu=on"),
                    f"init={directory / 'init'}",
                    f"lamina_kernel={self._kernel}",
                )
            ),
        ]

    def _serve(self, path: Path, directory: Path, *, cache: str) -> Path:
        """Serve a directory on a socket; the process ends when QEMU does, or this one."""
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen()
            options = f"source={directory},cache={cache},sandbox=chroot,xattr"
            argv = ("setpriv", "--pdeathsig", "TERM", VIRTIOFSD, "-f", f"--fd={listener.fileno()}")
            self._servers.append(
                subprocess.Popen(
                    (*argv, "-o", options),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    pass_fds=(listener.fileno(),),
                )
            )
        return path

    def _stop_servers(self) -> None:
        for server in self._servers:
            server.terminate()
        for server in self._servers:
            try:
                server.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
        self._servers.clear()


def kernel() -> Path:
    """Return the directory with the kernel.

    Raises:
        subprocess.CalledProcessError: there is none.
    """
    done = subprocess.run((ZFS_KERNEL, "--cached"), check=True, capture_output=True, text=True)
    return Path(done.stdout.strip())


def _filesystem(tag: str, path: Path) -> tuple[str, ...]:
    device = f"vhost-user-fs-pci,chardev={tag},tag={tag}"
    return ("-chardev", f"socket,id={tag},path={path}", "-device", device)
