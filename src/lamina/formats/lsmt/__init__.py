"""LSMT, the layers of overlaybd: each maps places of a block device to places in its file.

`reader` reads layers and the log of a writable one, `merging` lays indexes over each other, `stack`
shows the device of several layers, and `writer` makes layers. Described in
`docs/formats/overlaybd.md`.
"""
