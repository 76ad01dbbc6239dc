"""The btrfs snapshotter: a subvolume per snapshot, which shares all blocks with its parent's."""
