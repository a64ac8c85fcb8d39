"""The Dask workers: connecting to them, checking them, sending them parts.

    connect.py      get a client: of a cluster that scorer starts, by its kind, or of a running scheduler
    readiness.py    checks that each worker can score; delivers the model to hosts without it
    scripts.py      scripts that start worker processes, with and without a guard for it
    kinds/          starts the workers: a module for each kind of --cluster
    waves.py        submits parts in waves, collects receipts, notices lost workers and submits their parts again
    tasks.py        what runs on a worker: the plugin, and the functions that tasks call
    dashboard.py    what Dask's dashboard shows of a run: its address, spans and events
    _servers.py     Dask's scheduler, worker and nanny in this process, which leave no trace in it
    _overrides.py   settings of this process that runs change while they are active, also in several threads
    _deadline.py    stops taking parts when the job's walltime is nearly over

The only package that knows Dask and pandas frames of parts.
State: _overrides.DASK_CONFIG, _overrides.ENVIRONMENT, _overrides.WARNINGS, _overrides._LOG_LEVELS.
"""
