"""The erofs snapshotter: each layer is one read-only image, stacked by the kernel's overlay."""
