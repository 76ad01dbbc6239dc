"""EROFS, Linux's read-only filesystem: images written from trees of inodes, and read.

`tree` is what both speak of; `layout` has the records of the disk format; `writer` and `reader`
stand beside each other. The facts are those of the kernel's `fs/erofs/erofs_fs.h`.
"""
