"""ext4, written: layers of an image applied one after the other to one filesystem.

Source of all facts: the kernel's documentation of ext4's data structures (`filesystems/ext4`),
`fs/ext4/ext4.h`, and what e2fsck of e2fsprogs 1.47 checks.
"""
