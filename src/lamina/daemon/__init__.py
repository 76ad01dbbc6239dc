"""`lamina serve`: all usable snapshotters on one socket; its logs, metrics and readiness."""
