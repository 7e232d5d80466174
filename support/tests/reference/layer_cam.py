"""LayerCAM of torchvision's MobileNetV2 with one logit on top, by pytorch-grad-cam.

    pip install torch==2.11.0 torchvision==0.26.0 grad-cam==1.5.7 safetensors
    python layer_cam.py mobilenet_v2-b0353104.pth     # ../data/layer_cam.safetensors

The head's kernel is `sin(i) / 10`, its bias 0; inputs are the first three pictures of `pictures.py` as in
`torch_backbones.py`. `for` and `against` `[3, 10, 10]` f32: what speaks for class 1 and for class 0 at the
output of block 13's expansion, cut off at the 97th percentile of each map and divided by its largest
value; `logits` `[3]`.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import torchvision
from pytorch_grad_cam import LayerCAM
from pytorch_grad_cam.activations_and_gradients import ActivationsAndGradients
from safetensors.numpy import save_file

from pictures import pictures

DATA = Path(__file__).parent.parent / "data"
MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("weights")
    model = torchvision.models.mobilenet_v2()
    model.load_state_dict(torch.load(parser.parse_args().weights, weights_only=True))
    head = torch.nn.Linear(1280, 1)
    head.load_state_dict({"weight": torch.sin(torch.arange(1280.0)).unsqueeze(0) / 10, "bias": torch.zeros(1)})
    model.classifier = head
    model = model.eval().double()
    layer = model.features[14].conv[0]
    images = (pictures()[:3].astype(np.float64) / 255 - MEAN) / DEVIATION
    images = torch.from_numpy(images).permute(0, 3, 1, 2)
    result = {}
    for name, sign in [("for", 1), ("against", -1)]:
        cam = LayerCAM(model, [layer])
        seen = ActivationsAndGradients(model, [layer], None)
        logits = seen(images)
        (sign * logits).sum().backward()
        activations, gradients = (part[0].numpy() for part in (seen.activations, seen.gradients))
        maps = cam.get_cam_image(images, layer, None, activations, gradients, False)
        largest = np.quantile(maps, 0.97, axis=(1, 2), keepdims=True)
        result[name] = (np.minimum(maps, largest) / largest).astype(np.float32)
        print(name, result[name].mean((1, 2)))
    result["logits"] = logits.detach().squeeze(1).numpy().astype(np.float32)
    print(result["logits"])
    save_file(result, DATA / "layer_cam.safetensors")


if __name__ == "__main__":
    main()
