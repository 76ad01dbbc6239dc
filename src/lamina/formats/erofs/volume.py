"""What holds for a whole image: its superblock, and the devices that its data lies on."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

from lamina.formats.crc32c import crc32c
from lamina.formats.erofs.layout import (
    CRC_SEED,
    DEVICE_SLOT,
    EROFS_FEATURE_COMPAT_SB_CHKSUM,
    EROFS_FEATURE_INCOMPAT_48BIT,
    EROFS_FEATURE_INCOMPAT_CHUNKED_FILE,
    EROFS_FEATURE_INCOMPAT_COMPR_CFGS,
    EROFS_FEATURE_INCOMPAT_DEVICE_TABLE,
    EROFS_FEATURE_INCOMPAT_FRAGMENTS,
    EROFS_FEATURE_INCOMPAT_LZ4_0PADDING,
    EROFS_FEATURE_INCOMPAT_METABOX,
    EROFS_FEATURE_INCOMPAT_XATTR_PREFIXES,
    EROFS_FEATURE_INCOMPAT_ZTAILPACKING,
    EROFS_SUPER_MAGIC_V1,
    EROFS_SUPER_OFFSET,
    SECOND,
    SUPERBLOCK,
    DeviceSlot,
    Superblock,
)
from lamina.formats.erofs.metadata import Metadata, damaged
from lamina.formats.erofs.tree import Extent

BLOCK_BITS_READ = range(9, 17)
"""512 bytes, as for tar archives that are their own data, to the largest page of Linux: 64 KiB."""

_FEATURES = {
    EROFS_FEATURE_INCOMPAT_COMPR_CFGS: "compression (COMPR_CFGS)",
    EROFS_FEATURE_INCOMPAT_ZTAILPACKING: "compressed tails (ZTAILPACKING)",
    EROFS_FEATURE_INCOMPAT_FRAGMENTS: "compressed fragments (FRAGMENTS)",
    EROFS_FEATURE_INCOMPAT_XATTR_PREFIXES: "long prefixes of xattrs (XATTR_PREFIXES)",
    EROFS_FEATURE_INCOMPAT_48BIT: "block numbers of 48 bits (48BIT)",
    EROFS_FEATURE_INCOMPAT_METABOX: "compressed metadata (METABOX)",
}
# Old versions of mkfs.erofs set LZ4_0PADDING where nothing is compressed.
_READ = (
    EROFS_FEATURE_INCOMPAT_LZ4_0PADDING
    | EROFS_FEATURE_INCOMPAT_CHUNKED_FILE
    | EROFS_FEATURE_INCOMPAT_DEVICE_TABLE
)


class Volume:
    """An image as a whole.

    Attributes:
        metadata: bytes of the image.
        superblock: its superblock.
        slots: its device table; device 1 has the first.
        block_bits: binary logarithm of the bytes of a block.
        block: bytes of a block.
        device_mask: bits that count in the number of a device.
    """

    def __init__(self, metadata: Metadata, device_sizes: Sequence[int]) -> None:
        """Read superblock and device table.

        Args:
            metadata: bytes of the image.
            device_sizes: bytes of each extra device; empty where none is at hand.

        Raises:
            FormatError: this is no such image, it is damaged, or it has what is not supported.
        """
        self.metadata = metadata
        self.superblock = parse_superblock(metadata)
        self.block_bits = self.superblock.blkszbits
        self.block = 1 << self.block_bits
        self.slots = parse_slots(metadata, self.superblock)
        self.device_mask = (1 << len(self.slots).bit_length()) - 1
        self._sizes = device_sizes
        self._redirects = self._find_redirects()
        self._starts = [start for start, _stop, _device in self._redirects]

    def _find_redirects(self) -> list[tuple[int, int, int]]:
        """Return byte ranges of device 0 that other devices have: start, stop, and device."""
        found = []
        for number, slot in enumerate(self.slots, 1):
            if slot.uniaddr_lo:
                start = slot.uniaddr_lo << self.block_bits
                found.append((start, start + (slot.blocks_lo << self.block_bits), number))
        found.sort()
        for (_, stop, first), (start, _, second) in pairwise(found):
            if start < stop:
                got = f"devices {first} and {second} both from byte {start} on"
                raise damaged(self.superblock.devt_slotoff * DEVICE_SLOT.size, "one device", got)
        return found

    def place(self, length: int, device: int, offset: int, at: int) -> Extent:
        """Return where bytes lie that are said to be on a device, once that device has them.

        Args:
            length: bytes.
            device: number, any.
            offset: byte on the device, any.
            at: byte of the image that says so, for errors.

        Raises:
            FormatError: there is no such device, or it has no such bytes.
        """
        if device == 0:
            return self._place_in_image(length, offset)
        if device > len(self.slots):
            raise damaged(at, f"one of {len(self.slots)} extra devices", f"device {device}")
        if self._sizes and offset + length > self._sizes[device - 1]:
            expected = f"data within the {self._sizes[device - 1]} bytes of device {device}"
            raise damaged(at, expected, f"bytes {offset} to {offset + length}")
        return Extent(length, device, offset)

    def _place_in_image(self, length: int, offset: int) -> Extent:
        index = bisect_right(self._starts, offset) - 1
        if index >= 0 and offset < self._redirects[index][1]:
            start, stop, device = self._redirects[index]
            if offset + length > stop:
                expected = f"data that ends before byte {stop}, with device {device}"
                raise damaged(offset, expected, f"{length} bytes")
            return self.place(length, device, offset - start, offset)
        self.metadata.check(offset, length, "data")
        return Extent(length, 0, offset)


def parse_superblock(metadata: Metadata) -> Superblock:
    """Return the superblock of an image that the reader knows how to read.

    Raises:
        FormatError: this is no such image, it is damaged, or it has what is not supported.
    """
    at = EROFS_SUPER_OFFSET
    raw = metadata.read(at, SUPERBLOCK.size, "superblock")
    found = Superblock._make(SUPERBLOCK.unpack(raw))
    if found.magic != EROFS_SUPER_MAGIC_V1:
        raise damaged(at, f"the magic number {EROFS_SUPER_MAGIC_V1:#x}", f"{found.magic:#x}")
    if found.blkszbits not in BLOCK_BITS_READ or found.dirblkbits:
        expected = f"blocks of 2**{BLOCK_BITS_READ.start} to 2**{BLOCK_BITS_READ.stop - 1} bytes"
        got = f"2**{found.blkszbits}, in directories times 2**{found.dirblkbits}"
        raise damaged(at, expected, got)
    if found.feature_compat & EROFS_FEATURE_COMPAT_SB_CHKSUM:
        _check_checksum(metadata, found)
    if unknown := found.feature_incompat & ~_READ:
        raise damaged(at, "no features but chunks and extra devices", _feature_names(unknown))
    if found.fixed_nsec >= SECOND:
        raise damaged(at, f"fewer than {SECOND} nanoseconds", found.fixed_nsec)
    return found


def _check_checksum(metadata: Metadata, superblock: Superblock) -> None:
    size = 1 << superblock.blkszbits
    size -= EROFS_SUPER_OFFSET if size > EROFS_SUPER_OFFSET else 0
    data = metadata.read(EROFS_SUPER_OFFSET, size, "block of the superblock")
    checksum = crc32c(CRC_SEED, data[:4] + bytes(4) + data[8:])
    if checksum != superblock.checksum:
        got = f"{superblock.checksum:#010x}"
        raise damaged(EROFS_SUPER_OFFSET + 4, f"the checksum {checksum:#010x}", got)


def _feature_names(bits: int) -> str:
    names = [name for bit, name in _FEATURES.items() if bits & bit]
    if unknown := bits & ~sum(_FEATURES):
        names.append(f"unknown features ({unknown:#x})")
    return ", ".join(names)


def parse_slots(metadata: Metadata, superblock: Superblock) -> tuple[DeviceSlot, ...]:
    """Return the device table.

    Raises:
        FormatError: it lies outside the image, or has addresses of 48 bits.
    """
    if not superblock.feature_incompat & EROFS_FEATURE_INCOMPAT_DEVICE_TABLE:
        return ()
    at = superblock.devt_slotoff * DEVICE_SLOT.size
    raw = metadata.read(at, superblock.extra_devices * DEVICE_SLOT.size, "device table")
    slots = tuple(map(DeviceSlot._make, DEVICE_SLOT.iter_unpack(raw)))
    for number, slot in enumerate(slots, 1):
        if slot.blocks_hi or slot.uniaddr_hi:
            got = f"device {number} of 48 bits"
            raise damaged(at, "devices with block numbers of 32 bits", got)
    return slots
