"""The aufs snapshotter: directories stacked by a filesystem that few kernels have any more."""
