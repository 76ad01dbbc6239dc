"""Where a layer's bytes come from: descriptions that are stored, and what is opened from them.

`file.FileSource` is here; the source for a blob in a registry is
`lamina.images.registry.source.RegistrySource`. Who composes the two passes an `Opener`.
"""
