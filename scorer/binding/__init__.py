"""Columns to tensors and back: which feeds which, and how the values are converted.

advice.py     The --feed and --fetch lines that a model suggests before any data is seen.
feeds.py      The checked feed of one tensor: plain columns, or a converter's.
inputs.py     Which columns feed which tensor: automatic where that is certain, an error to paste from where it is not.
outputs.py    Which output tensor becomes which columns, and the schema of every part of the output.
request.py    What --feed and --on-null say, tensor by tensor.
spec.py       What was bound, as data: Feed, Fetch, Transform, Binding; and each in words.
transform.py  The user's own function between reading and feeding: frame in, frame out, the same rows.
features/     The converters: a whole part is looked at once (`pack`), then each batch is cut from it.
"""
