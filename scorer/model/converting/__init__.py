"""`scorer convert`: a model of another library as ONNX, compared with the original before it is written.

    request.py         what travels to the process that converts, and back
    sources.py         what the model is, by its bytes and its folder
    conversion.py      loads, writes and compares one model, in a process of its own
    original.py        Original: a model as its own library loaded it
    lightgbm_model.py  LightGBM, with an own writer whose comparisons are exact
    xgboost_model.py   XGBoost, with an own writer
    catboost_model.py  CatBoost, by its own export
    sklearn_model.py   scikit-learn, by skl2onnx
    onnx_inside.py     folders of Hugging Face and MLflow that have an ONNX model
    graphs.py          what writers of graphs share: lists of tree nodes, outputs, metadata
    gate.py            the parity gate: both models score the same rows, and none may differ
    edges.py           rows on the thresholds of trees, for the gate

A run imports nothing of it. The libraries of the models are imported only while one of theirs is converted.
"""
