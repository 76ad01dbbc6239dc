"""The overlayfs snapshotter: one directory per snapshot, stacked by the kernel's overlay."""
