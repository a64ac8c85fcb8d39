"""Smaller and faster forms of a model: what `scorer optimise` tries.

    recipes.py     the recipes, which of them fit a model, and the models that they write
    _weights.py    weights of matrix products in 8 bits, as the operator MatMulNBits

Whether a candidate is fast and exact enough is measured elsewhere, in `scorer.api.optimisation`.
"""
