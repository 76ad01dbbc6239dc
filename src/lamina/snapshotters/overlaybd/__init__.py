"""The overlaybd snapshotter: images whose layers are block devices (overlaybd, TurboOCI)."""
