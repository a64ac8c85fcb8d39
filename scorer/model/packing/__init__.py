"""Packed weights: as ONNX Runtime arranges them for its kernels, in a file that all processes of a host map.

    shared.py     the packed weights of this host: found, checked, written once, the oldest removed
    _writing.py   packs a model, and proves that it gives the same scores; runs in a process of its own

ONNX Runtime otherwise copies the weights into the memory of every process. Imported only if processes share a host.
"""
