"""What every snapshotter must do, whatever its driver and however it is reached."""
