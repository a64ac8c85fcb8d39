"""Files and what is in them: durable writes, retries, and Parquet down to its pages. Knows no plan, model or dataset.

copying.py   Columns of whole row groups put into a new file as they are stored.
encoding.py  What a Parquet writer is told, and how large a table becomes.
files.py     Files on disks that many machines share: tried again, written whole, made durable, renamed.
footers.py   The one way Parquet files are opened, and what their footers say of columns.
pages.py     Pages of a column chunk as they are stored, checked or given a checksum.
thrift.py    As much of Thrift's compact form as Parquet's footers and page headers need.
"""
