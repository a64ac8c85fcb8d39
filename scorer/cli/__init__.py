"""The command line: flags in, text or JSON out, an exit code.

    main.py        the commands: parse the flags, call the API, print, exit
    replay.py      scorer replay: one row of an output, from the input to its scores
    lineage.py     scorer lineage: which plan, model and input a file of an output is from
    command.py     what commands share: help by topic, usage errors, results, exit codes
    flags.py       the fields of the options as click flags, and values from a job file
    text.py        plans, reports and errors as text, as wide as the terminal
    doctor.py      scorer doctor: installed packages, usable devices, and what to install
    bench.py       scorer bench: scorer against the hand-written loop and other tools
    baseline.py    the hand-written loop that bench compares with
    startup.py     faster imports for the command line

The only package that knows click. No other package imports it.
"""
