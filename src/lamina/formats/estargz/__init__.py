"""eStargz and zstd:chunked: layers whose files can be read one at a time, without the rest.

A blob is a tar in many gzip members or zstd frames, a table of contents (TOC) and a footer that
says where that is. `footer` finds the TOC, `toc` reads it, `units` says what is fetched for which
file, and `tree` makes the inodes of an EROFS image whose data lies in a cache file.

`writer` makes both kinds from a tar.
"""
