"""The converters: a whole part is looked at once (`pack`), then each batch is cut from it.

codes.py     Categories by a vocabulary, dates by an epoch.
constant.py  A tensor that is the same for every row.
image.py     A column of encoded pictures as a tensor of pixels.
lists.py     One list column whose every row is the tensor's row.
numeric.py   Columns of numbers.
pack.py      Every feed's converter, by its kind.
packed.py    The one interface of all converters: the columns of a part, ready to be cut into batches.
picture.py   One encoded picture, decoded, turned and fitted.
steps.py     What is done to an output tensor before it becomes columns: softmax, pooling, top classes.
strings.py   Columns of text as string tensors.
text.py      Columns of text as tokens: ids, mask and types of one tokenisation.
unpack.py    Output tensors as Arrow columns.
"""
