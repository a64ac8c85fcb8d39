"""The converters: each looks at a part's columns once, then cuts its batches from them.

    pack.py        the converter of each feed, by its kind
    packed.py      Packed: the interface of every converter
    numeric.py     columns of numbers; nulls, casts
    strings.py     columns of text as string tensors
    lists.py       a list column whose every row is a row of the tensor
    codes.py       categories by a vocabulary, dates as numbers
    constant.py    a tensor that is the same for every row
    text.py        text as tokens: ids, mask and types
    image.py       encoded pictures as tensors of pixels
    _picture.py    one encoded picture: decoded, rotated, resized
    steps.py       steps on an output tensor: softmax, pooling, top classes
    unpack.py      output tensors as Arrow columns

State: _picture._HUSH, _picture._LIBTIFF, steps._parsed, text._LOADED, text._LOCK.
"""
