"""What the worker opens a cache by: a name that workers which run already have written down."""

from lamina.snapshotters.lazy_blobs import open_layer

__all__ = ["open_layer"]
