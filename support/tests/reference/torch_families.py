"""Pooled features of EfficientNet-Lite and of torchvision's ResNet, for the Rust base to equal.

    python torch_families.py LITE0.pth LITE1.pth LITE2.pth     # ../data/torch_families.safetensors

The weights are those of `formula.py`, and EfficientNet-Lite's own (see ../../../data/assets.toml) besides. Inputs
are pictures of `pictures.py`, `formula.tiled` to a size and normalized as the networks want them.

`torch_families.safetensors`, f32, the third picture's: `efficientnet-lite0 64`, `efficientnet-lite1 240`,
`efficientnet-lite2 260` `[1, 1280]`, `resnet18 75` `[1, 512]`, `resnet50 64` `[1, 2048]` with the formula's weights;
`efficientnet-lite0 real 224`, `efficientnet-lite1 real 240`, `efficientnet-lite2 real 260` with their own. The metadata
has, for each network, the shapes of its `state_dict` by name, as JSON.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torchvision
from efficientnet_lite_pytorch import EfficientNet
from safetensors.numpy import save_file

import formula
from pictures import pictures

DATA = Path(__file__).parent.parent / "data"
SIZES = {
    "efficientnet-lite0": 64,
    "efficientnet-lite1": 240,
    "efficientnet-lite2": 260,
    "resnet18": 75,
    "resnet50": 64,
}
OWN_SIZES = [224, 240, 260]


def network(name, size):
    """Returns a network for pictures of a size, and the function that computes its pooled features."""
    if name.startswith("efficientnet"):
        # Its padding depends on the size that it is made for.
        model = EfficientNet.from_name(name, image_size=size)
        return model, lambda images: model.extract_features(images).mean((2, 3))
    model = getattr(torchvision.models, name)()
    fully_connected = torch.nn.Identity()
    return model, lambda images: (setattr(model, "fc", fully_connected), model(images))[1]


def images(name, values, size, dtype):
    """Returns u8 `[N, height, width, 3]` as the network's input."""
    scaled = formula.tiled(values, size).astype(np.float32)
    if name.startswith("efficientnet"):
        scaled = (scaled - np.float32(127)) / np.float32(128)
    else:
        mean = np.array([0.485, 0.456, 0.406], np.float32)
        deviation = np.array([0.229, 0.224, 0.225], np.float32)
        scaled = (scaled / np.float32(255) - mean) / deviation
    return torch.from_numpy(scaled).permute(0, 3, 1, 2).contiguous().to(dtype)


def pooled(name, size, values, state):
    """Returns the means over a picture; prints how far f32 is from f64."""
    results = []
    for dtype in [torch.float32, torch.float64]:
        model, features = network(name, size)
        model.load_state_dict(state)
        model.eval().to(dtype)
        with torch.inference_mode():
            results.append(features(images(name, values, size, dtype)).numpy())
    result, precise = results
    deviation = np.abs(result - precise).max() / np.abs(precise).max()
    print(f"{name} {size}: largest {result.max():.3f}, {(result > 0).mean():.3f} positive, "
          f"f32 against f64 {deviation:.1e}")
    return result


def formula_state(name, size):
    """Returns a state with the weights of the formula; the classification top stays as it is."""
    state = network(name, size)[0].state_dict()
    for key, value in state.items():
        inputs = value[0].numel() if value.dim() == 4 else 0
        if value.is_floating_point():
            state[key] = torch.from_numpy(formula.values(key, tuple(value.shape), inputs))
    return state


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("weights", nargs=3, help="the .pth files of EfficientNet-Lite 0, 1, 2")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    values, tensors, metadata = pictures()[2:3], {}, {}
    for name, size in SIZES.items():
        state = formula_state(name, size)
        tensors[f"{name} {size}"] = pooled(name, size, values, state)
        shapes = {key: list(value.shape) for key, value in state.items()}
        metadata[name] = json.dumps(shapes, separators=(",", ":"))
    for variant, (path, size) in enumerate(zip(arguments.weights, OWN_SIZES)):
        name = f"efficientnet-lite{variant}"
        state = torch.load(path, weights_only=True)
        tensors[f"{name} real {size}"] = pooled(name, size, values, state)
    path = DATA / "torch_families.safetensors"
    save_file(tensors, path, metadata)
    print(f"{path.name}: {path.stat().st_size} bytes; torch {torch.__version__}, "
          f"torchvision {torchvision.__version__}")


if __name__ == "__main__":
    main()
