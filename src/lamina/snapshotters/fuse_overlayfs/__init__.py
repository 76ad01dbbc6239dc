"""The fuse-overlayfs snapshotter: overlayfs's directories, stacked by a program of its own."""
