"""containerd's TOML configuration, versions 2 and 3."""
