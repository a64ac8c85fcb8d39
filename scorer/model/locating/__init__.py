"""Where a model is: what `--model` names, if that is no file, and what its folder says about it.

    located.py            from a text to the ONNX file, and from its folder to the flags that it stands for
    folders.py            a folder with a model, local or on a store
    mlflow.py             folders of MLflow: which model is inside, and the columns of its signature
    hugging_face.py       folders of Hugging Face: tokenizer, pooling, classes and the treatment of pictures, as flags
    tracking.py           models:/NAME@ALIAS and runs:/ID/PATH: the folder that an MLflow tracking store has for them
    tracking_stores.py    a tracking server, its database, or its folder of files

A run whose model is a file imports nothing of it.
"""
