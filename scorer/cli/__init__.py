"""The command line: flags in, text or JSON out, an exit code. Knows click; nobody imports it.

baseline.py  The loop that an expert would write by hand; what bench measures against.
bench.py     `scorer bench`: this tool, the loop and others, whole processes in turns.
doctor.py    What is installed, which devices work, and what to type where something is missing.
flags.py     The fields of the options as flags, and a job file below them.
main.py      The commands: parse, call a verb, print, exit.
startup.py   Imports of a command, without what only an interactive session needs.
text.py      Values as text, as wide as the window.
"""
