"""Text, tables and HTML.

    words.py       names, numbers and times as a person reads them
    tables.py      text in columns: widths, wrapping
    terminal.py    what a stream can show, and lines at the bottom that are redrawn in place
    blocks.py      the pieces of a page or card as data: headings, facts, tables, meters
    plots.py       plots as data: shapes in hundredths of their frame
    html.py        blocks and plots as HTML, by the templates beside it

Knows no type of scorer's other packages.
State: html._cards, html.template.
"""
