"""Opens the cache of a blob, and the registry that has the rest, in the lazy worker."""

from __future__ import annotations

from pathlib import Path

from lamina.lazy.cache import LayerCache
from lamina.snapshotters.lazy_blobs import open_layer
from lamina.snapshotters.nydus.contexts import CONTEXTS, Contexts


def open_blob(directory: Path) -> LayerCache:
    """Open a cache below `blobs`; see `LayerCache`."""
    contexts = directory.parent / CONTEXTS
    if contexts.exists():
        return open_layer(directory, Contexts(contexts).decode)
    return open_layer(directory)
