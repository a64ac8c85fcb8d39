"""The converters: each checks the columns of a part once, then cuts batches from them.

    pack.py        applies to each feed the converter of its kind
    packed.py      Packed: the interface of every converter
    numeric.py     columns of numbers: applies the null policy and checks casts, also for other converters
    strings.py     columns of text as string tensors
    lists.py       a list column: each list is one row of the tensor
    codes.py       categories as vocabulary indices, dates as numbers, several converters in one tensor
    constant.py    a tensor that is the same for every row
    text.py        text as token tensors: ids, mask and types
    image.py       encoded pictures as tensors of pixels
    _picture.py    one encoded picture: decoded, rotated, resized
    steps.py       the steps of --fetch on an output tensor: softmax, pooling, top classes
    unpack.py      output tensors as Arrow columns

State: _picture._LIBTIFF_MUTE, _picture._PILLOW_FILTER, steps._parse_known, text._LOADED, text._LOCK.
"""
