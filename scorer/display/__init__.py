"""Text, tables and HTML. Knows no type of ours.

blocks.py    The pieces of a page or card as data: headings, facts, tables, meters.
html.py      Blocks and plots as HTML, by the templates beside this file.
plots.py     Plots as data: shapes in hundredths of their frame.
tables.py    Text in columns: widths, wrapping, facts and tables.
terminal.py  What a stream can show, and lines at the foot of a terminal that are drawn again in place.
words.py     Names, numbers and times as a person reads them.
"""
