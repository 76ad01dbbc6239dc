"""Values and contracts. Standard library only, no I/O: importable on any system, without root."""
