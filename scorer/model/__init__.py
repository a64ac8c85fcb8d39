"""The model: what its file says, and the session that runs it. The only package that knows ONNX and its runtime.

copies.py    A model's copy on a host that does not see the driver's file, kept under its digest.
protobuf.py  A model's file, read without making a session.
resident.py  The models of this process, each loaded once: whoever comes first loads it, the others wait.
session.py   One loaded model on ONNX Runtime: its device, its threads, what its errors mean.
spec.py      A model as data: its tensors, labels and operators, and all that is needed to load it.
"""
