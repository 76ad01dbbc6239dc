"""ZFile, a file of blocks that are compressed one by one: what most overlaybd layers are in.

`reader` shows the uncompressed bytes, `writer` makes such files, and `envelope` is the tar that
layers are pushed to registries in. Described in `docs/formats/overlaybd.md`.
"""
