"""RAFS, the format of Nydus images: bootstraps of versions 5 and 6, and the blobs they lead to.

`model` is what both versions are read into; `bootstrap` tells them apart; `blob_meta`, `toc` and
`chunk_data` read blobs; `units` and `tree` say what fills the devices of an EROFS mount. Described
in `docs/formats/rafs.md`.
"""
