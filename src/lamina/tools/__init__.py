"""External programs, all of them run through `lamina.tools.run`."""
