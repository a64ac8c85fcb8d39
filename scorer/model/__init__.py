"""The model: what its file says, and the session that runs it.

    spec.py        ModelSpec, TensorSpec and SessionSpec: plain data that travels to workers
    protobuf.py    reads a model's file without creating a session
    _columns.py    which columns of its inputs a model with tree ensembles looks at
    session.py     one loaded model on ONNX Runtime: device, threads, errors explained
    trees.py       a model with tree ensembles: their nodes compiled, the rest of its graph on ONNX Runtime
    _tree_node.py  one ensemble on the kernel: a matrix in, labels and scores out
    _forest.py     the trees of a node with all comparisons in one form
    _program.py    the program that trees.c runs for them
    _kernel.py     the library compiled from trees.c, and the instruction set in use
    _compile.py    compiles trees.c when scorer is built or installed
    resident.py    Engine: what a loaded model offers; SESSIONS: the models of this process, each loaded once
    converting/    `scorer convert`: models of other libraries as ONNX, compared with the originals
    optimising/    `scorer optimise`: smaller and faster forms of a model
    locating/      what --model names besides a file: folders of Hugging Face and MLflow, and tracking stores
    stages/        a model cut into pieces that run one after the other, each with a share of the weights
    packing/       the weights of a large model, packed once for each host and mapped by all processes
    copies.py      the model cache of a host: what is fetched from URLs, or delivered by the driver

The only package that knows ONNX and ONNX Runtime. Knows no dataset, no plan and no Dask.
trees.c sums the trees of an ensemble for blocks of rows.
State: _kernel._library, _kernel._processor_flags, protobuf.protobufs, resident.SESSIONS, session.why_not.
"""
