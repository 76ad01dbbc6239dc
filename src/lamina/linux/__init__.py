"""Linux system calls and ioctls: one thin wrapper each, no policy. OSError rises from here."""
