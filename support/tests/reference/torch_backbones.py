"""Pooled features of torchvision's and timm's MobileNetV2, for the Rust base to equal.

    python torch_backbones.py mobilenet_v2-b0353104.pth     # ../data/torch_backbones.safetensors, *.pth

torchvision's has its real weights (see ../../../data/assets.toml), timm's those of `formula.py`. Inputs
are pictures of `pictures.py`, `formula.tiled` to a size and normalized by ImageNet's mean and deviation.

`torch_backbones.safetensors`, f32: `torchvision 96` and `torchvision 160` `[2, 1280]` of the first two
pictures; `mobilenetv2_050 96`, `mobilenetv2_100 128`, `mobilenetv2_140 224` `[1, 1280 or 1792]` of the
third. The metadata has, for each of timm's models, the shapes of its `state_dict` by name, as JSON.

`legacy.pth` and `zip.pth`: the same small `state_dict` as `torch.save` wrote it before and since 1.6.
"""

import argparse
import json
from collections import OrderedDict
from pathlib import Path

import numpy as np
import timm
import torch
import torchvision
from safetensors.numpy import save_file

import formula
from pictures import pictures

DATA = Path(__file__).parent.parent / "data"
TIMM = {"mobilenetv2_050": 96, "mobilenetv2_100": 128, "mobilenetv2_140": 224}
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)


def images(values, size, dtype):
    """Returns u8 `[N, height, width, 3]` as the network's input."""
    scaled = formula.tiled(values, size).astype(np.float32) / np.float32(255)
    return torch.from_numpy((scaled - MEAN) / DEVIATION).permute(0, 3, 1, 2).contiguous().to(dtype)


def pooled(features, values, size):
    """Returns the means over a picture; prints how far f32 is from f64."""
    with torch.inference_mode():
        result = features(torch.float32)(images(values, size, torch.float32)).mean((2, 3)).numpy()
        precise = features(torch.float64)(images(values, size, torch.float64)).mean((2, 3)).numpy()
    deviation = np.abs(result - precise).max() / np.abs(precise).max()
    print(f"{size}: largest {result.max():.3f}, {(result > 0).mean():.3f} positive, "
          f"f32 against f64 {deviation:.1e}")
    return result


def torchvision_features(path, dtype):
    model = torchvision.models.mobilenet_v2()
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval().to(dtype).features


def timm_model(name):
    """Returns a model with the weights of the formula, and their shapes."""
    model = timm.create_model(name, pretrained=False)
    state = model.state_dict()
    for key, value in state.items():
        inputs = value[0].numel() if value.dim() == 4 else 0
        if value.is_floating_point():
            state[key] = torch.from_numpy(formula.values(key, tuple(value.shape), inputs))
    model.load_state_dict(state)
    return model.eval(), {key: list(value.shape) for key, value in state.items()}


def small_files():
    state = OrderedDict()
    state["features.0.0.weight"] = torch.arange(6, dtype=torch.float32).reshape(3, 2).t() / 4
    state["features.0.1.running_var"] = torch.tensor([0.5, -1.5])
    state["features.0.1.num_batches_tracked"] = torch.tensor(7)
    state["classifier.1.bias"] = torch.zeros(1)
    torch.save(state, DATA / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.save(state, DATA / "zip.pth")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("weights", help="torchvision's mobilenet_v2-b0353104.pth")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    values, tensors, metadata = pictures(), {}, {}
    for size in [96, 160]:
        features = lambda dtype: torchvision_features(arguments.weights, dtype)
        tensors[f"torchvision {size}"] = pooled(features, values[:2], size)
    for name, size in TIMM.items():
        model, shapes = timm_model(name)
        features = lambda dtype: model.to(dtype).forward_features
        tensors[f"{name} {size}"] = pooled(features, values[2:3], size)
        metadata[name] = json.dumps(shapes, separators=(",", ":"))
    path = DATA / "torch_backbones.safetensors"
    save_file(tensors, path, metadata)
    small_files()
    print(f"{path.name}: {path.stat().st_size} bytes; torch {torch.__version__}, "
          f"torchvision {torchvision.__version__}, timm {timm.__version__}")


if __name__ == "__main__":
    main()
