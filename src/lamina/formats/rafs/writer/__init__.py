"""Writing RAFS: a blob for each layer of an image, and one bootstrap of all of them.

Chunks are compressed one at a time; one that a blob of the image has already is not written again.
The same layers and options give the same bytes, with any number of threads, as long as the
compressor is the same: other versions of ISA-L, LZ4 and libzstd, and ISA-L on other processors, may
compress differently.

Memory: some kilobytes for each file of the image and a few hundred bytes for each chunk, and a few
chunks for each thread. A layer's files wait in a temporary file, since what comes last may have to
come first.

`gzip_layer` leaves the data in gzip layers that are there before, and tells where to decompress.

Not supported: batches, encryption, bootstraps inside of blobs, tars as blobs, holes, which are
stored as zeros.
"""
