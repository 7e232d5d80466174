"""Prints what ONNX Runtime or OpenVINO makes of the models that a test has exported.

    pip install onnxruntime==1.32.0        # as in ../../../requirements.txt
    python onnx_logits.py onnxruntime FOLDER
    pip install openvino==2026.4.1
    python onnx_logits.py openvino FOLDER

The folder holds NAME.onnx and NAME.npy, images f32 `[N, 3, H, W]`. The output is JSON, for each name the
logits of the first image alone (`of_one`) and of the whole batch (`of_all`); of ONNX Runtime also `inputs` and
`outputs` with their shapes, and `metadata`.
"""

import json
import sys
from pathlib import Path

import numpy as np


def onnxruntime(path):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    shapes = lambda values: {value.name: value.shape for value in values}
    told = {
        "inputs": shapes(session.get_inputs()),
        "outputs": shapes(session.get_outputs()),
        "metadata": session.get_modelmeta().custom_metadata_map,
    }
    return lambda images: session.run(["logits"], {"image": images})[0], told


def openvino(path):
    import openvino

    # Where the processor has it, 16 bits are the default.
    precision = {"INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.Core().compile_model(path, "CPU", precision)
    return lambda images: model({"image": images})["logits"], {}


def main(program, folder):
    found = {}
    for path in sorted(Path(folder).glob("*.onnx")):
        run, told = {"onnxruntime": onnxruntime, "openvino": openvino}[program](path)
        images = np.load(path.with_suffix(".npy"))
        logits = {"of_one": run(images[:1]), "of_all": run(images)}
        found[path.stem] = told | {key: values.tolist() for key, values in logits.items()}
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
