"""The process and its machine: devices, memory, versions, signals, crashes, the user's cache.

cache.py      The user's cache folder on a local disk: what tuning found, and compiled engines.
crash.py      The command in a child process, so that a parent is left to explain when native code ends it.
devices.py    Devices by name and number: which there are to ask for, and which one each process gets.
isolation.py  A function in a process of its own, so that native code which ends a process ends only that one.
process.py    The process that asks: its name, its birth, the memory it holds.
signals.py    Ctrl-C and SIGTERM: the first one drains, the second one stops.
versions.py   The installed versions that decide a score's bits, and where they differ from the planned ones.
watchdog.py   A thread that notices a call that takes too long.
"""
