"""The kinds of --cluster: each module has a function `start` that starts one kind and yields its workers.

    workers.py     the workers of a run, and a client of a cluster
    local.py       threads of this process, or processes of this machine
    queues.py      jobs of Slurm, PBS, LSF, SGE, OAR or HTCondor, by dask-jobqueue
    classes.py     any class with the interface of Dask's clusters, by its name
    sizes.py       how many workers and threads the options will give, before any cluster exists
    _quoting.py    names and paths in job scripts, quoted

Every kind has one way in: `connect.connect` looks the name of --cluster up, and any other name is a class.
"""
