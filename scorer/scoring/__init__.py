"""One part in one process: read, scored, committed. Knows no Dask.

batches.py  One table through the model: batches, halves where a row fails, columns back.
compare.py  How far two scorings of the same rows may differ.
content.py  What a part's file is made of: scores, and kept columns encoded or copied.
job.py      A run as each process that scores knows it.
metrics.py  Prometheus counters of what this process did.
part.py     Read, score and commit one part.
"""
