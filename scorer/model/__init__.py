"""The model: what its file says, and the session that runs it.

    spec.py        ModelSpec, TensorSpec and SessionSpec: plain data that travels to workers
    protobuf.py    reads a model's file without creating a session
    session.py     one loaded model on ONNX Runtime: device, threads, errors explained
    resident.py    SESSIONS: the models of this process, each loaded once
    copies.py      the model cache of a host that cannot read the driver's file

The only package that knows ONNX and ONNX Runtime. Knows no dataset, no plan and no Dask.
State: protobuf._protobufs, resident.SESSIONS, session.why_not.
"""
