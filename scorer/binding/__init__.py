"""Columns to tensors and back: which column feeds which tensor, and how values are converted.

    request.py      what --feed and --on-null ask for: ranges and globs become columns, tensor by tensor
    inputs.py       matches columns to tensors: automatic if there is one safe match, else an error
    feeds.py        checks one tensor's feed, before a row is read: columns, converter, null policy
    mixed.py        the same for columns with different converters: which converter belongs to which columns
    order.py        the order of columns: the model's, or by the numbers at the end of their names
    axes.py         the axis of each tensor that holds the rows, where it is not the first
    labels.py       the class names that --labels gives
    elements.py     where in an output's row an element of --fetch is, by the first batches
    outputs.py      which columns are kept, and which ones output tensors become; fixes the schema of the output
    transform.py    the user's own function between reading and feeding
    advice.py       the --feed and --fetch lines that errors and `inspect` suggest
    spec.py         Binding, Feed, Fetch and Transform: the result, as plain data
    features/       the converters: columns to tensors, tensors to columns

State: transform._digest, transform._imported.
"""
