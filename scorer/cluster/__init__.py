"""The workers: who they are, whether they can score, and what they are sent. The only package that knows Dask.

connect.py    Get a client: embedded threads, local processes, jobs of a queue, or a given scheduler.
dashboard.py  What Dask's dashboard is given: an address, a span, a few events.
deadline.py   Leave before the job ends: a worker near its walltime takes no part that it would not finish.
queues.py     Workers as jobs of a queue, through dask-jobqueue.
readiness.py  Ask every worker, before a row is scored, whether it can do the work; bring the model where it is missing.
tasks.py      What runs on a Dask worker: the plugin, and the three functions that tasks call.
waves.py      Parts as Dask collections, in waves, and their receipts as they come.
"""
