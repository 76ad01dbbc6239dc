"""The checks, grouped by what they are about, and the layers that they are made with."""
