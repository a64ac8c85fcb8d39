"""Files, and Parquet down to its pages: durable writes, retries, footers, encodings.

    files.py         file identities, retries, whole-file writes, fsync and atomic renames
    footers.py       opens Parquet files, and reads column facts from their footers
    stores.py        what is behind a location: the store, its options and credentials; paths on stores
    objects.py       an object store: reads, conditional writes, copies, listings, with retries
    refusals.py      what a store refuses, as errors; asks for rights before a run
    fetched.py       reads column chunks ahead from a store, over several connections
    filesystems.py   stores that scorer only reads from: web servers, Hadoop, protocols of fsspec
    encoding.py      what the Parquet writer is configured with, and how large a table becomes
    copying.py       copies columns of whole row groups into a new file without decoding them
    formats.py       recognises what a file is by its first bytes, and says what converts it to ONNX
    _pages.py        the pages of a column chunk: reads headers, checks and computes checksums
    _thrift.py       the part of Thrift's compact protocol that Parquet uses

Knows no plan, no model and no dataset.
State: _pages._BUFFERS, files.THROTTLED, stores._options, stores._stores, stores._lock.
State: fetched._lock, fetched._meter, fetched._pool.
"""
