"""Program: enter a new user namespace, print errno (0: done), stay until standard input ends.

Run by path, isolated and without site packages, so that it starts fast: it imports nothing of
this package.
"""

import ctypes
import os

CLONE_NEWUSER = 0x10000000


def main() -> None:
    """Do what the module says."""
    libc = ctypes.CDLL(None, use_errno=True)
    failed = libc.unshare(CLONE_NEWUSER) != 0
    os.write(1, b"%d\n" % (ctypes.get_errno() if failed else 0))
    if not failed:
        os.read(0, 1)


if __name__ == "__main__":
    main()
