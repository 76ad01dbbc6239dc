"""Images: references, registries, the content store, pull, import, export, collection."""
