"""Bootstraps of either version."""

from __future__ import annotations

from collections.abc import Sequence
from typing import BinaryIO

from lamina.formats.rafs.model import Inode
from lamina.formats.rafs.writer.options import RafsOptions
from lamina.formats.rafs.writer.tables import Tables
from lamina.formats.rafs.writer.v5 import write_v5
from lamina.formats.rafs.writer.v6 import write_v6


def write_bootstrap(
    root: Inode,
    tables: Tables,
    out: BinaryIO,
    options: RafsOptions,
    prefetch: Sequence[Inode] = (),
) -> None:
    """Write the bootstrap of a tree, as `write_v5` or `write_v6`."""
    write = write_v5 if options.version == 5 else write_v6
    write(root, tables, out, options, prefetch)
