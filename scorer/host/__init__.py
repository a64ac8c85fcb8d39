"""The process and its machine: devices, memory, versions, signals, crashes.

    process.py      this process: its name, start time and memory
    devices.py      devices by name and number, and which one each process gets
    versions.py     the package versions that decide a score's bits
    credentials.py  which credentials this process has for object stores
    limits.py       the system's limits on threads and open files, as errors
    signals.py      Ctrl-C and SIGTERM: the first finishes running parts, the second stops
    streams.py      standard output and error that never raise
    watchdog.py     a thread that notices calls that take too long
    crash.py        runs the command in a child process, to explain a crash in native code
    isolation.py    runs one function in its own process, so that a crash ends only that
    cache.py        the user's cache folder on a local disk: tuning results, compiled engines
    private.py      the user's folder in the temporary directory, closed to other users

State: crash._page, process._before_reset, process.boot_id, versions._version.
"""
