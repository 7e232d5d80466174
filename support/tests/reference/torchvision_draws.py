"""Makes ../data/torchvision_draws.json: what torchvision makes of given random numbers.

    pip install torch==2.11.0 torchvision==0.26.0
    python torchvision_draws.py

`RandomResizedCrop.get_params`, `RandomErasing.get_params` and `CutMix.make_params` run as they are, but for where their
random numbers come from: a list of numbers from 0 to 1, of which `uniform_` and `randint` make what they are asked for.
CutMix' share of the image is given as well. `MixUp` mixes three images of 2 x 1 pixels, and their labels.
"""

import json
import random
from pathlib import Path

import torch
from torchvision import transforms
from torchvision.transforms import v2

SIZES = [(500, 375), (32, 32), (7, 5), (300, 20), (20, 300), (1, 1), (4000, 3000)]
CROPS = [((0.08, 1.0), (0.75, 4 / 3)), ((0.5, 0.9), (1.0, 1.0)), ((1.0, 1.0), (0.75, 4 / 3))]
ERASED = [((0.02, 0.33), (0.3, 3.3)), ((0.9, 1.0), (0.1, 10.0))]
SHARES = [0.0, 0.2, 0.5, 0.9, 1.0]


class Drawn:
    """Puts a list of numbers in the place of torch's generator."""

    def __init__(self, numbers):
        self.numbers = iter(numbers)

    def __enter__(self):
        self.kept = torch.Tensor.uniform_, torch.randint
        torch.Tensor.uniform_ = lambda _, least, most: torch.tensor(
            float(least) + (float(most) - float(least)) * next(self.numbers), dtype=torch.float64
        )
        torch.randint = self.randint

    def randint(self, *bounds, size):
        least, most = bounds if len(bounds) == 2 else (0, bounds[0])
        return torch.tensor([least + int((most - least) * next(self.numbers))])

    def __exit__(self, *_):
        torch.Tensor.uniform_, torch.randint = self.kept


def numbers(count):
    return [round(random.random(), 6) for _ in range(count)]


def main():
    random.seed(0)
    boxes = []
    for width, height in SIZES:
        image = torch.zeros(3, height, width)

        def add(kind, scale, ratio, draws, box):
            boxes.append({"kind": kind, "size": [width, height], "scale": scale, "ratio": ratio, "draws": draws, "box": box})

        for scale, ratio in CROPS * 2:
            draws = numbers(22)
            with Drawn(draws):
                y, x, h, w = transforms.RandomResizedCrop.get_params(image, scale, ratio)
            add("crop", scale, ratio, draws, [x, y, w, h])
        for scale, ratio in ERASED * 2:
            draws = numbers(22)
            with Drawn(draws):
                y, x, h, w, value = transforms.RandomErasing.get_params(image, scale, ratio, [0.0])
            # Where nothing is erased it gives the image back.
            add("erase", scale, ratio, draws, None if value is image else [x, y, w, h])
        for share in SHARES:
            draws = numbers(2)
            cut_mix = v2.CutMix(num_classes=2)
            cut_mix._dist = torch.distributions.Categorical(torch.ones(1))
            cut_mix._dist.sample = lambda _: torch.tensor(share, dtype=torch.float64)
            with Drawn(draws):
                found = cut_mix.make_params([image[None]])
            x, y, right, bottom = found["box"]
            box = [x, y, right - x, bottom - y]
            boxes.append({"kind": "cut_mix", "size": [width, height], "share": share, "draws": draws, "box": box, "left": found["lam_adjusted"]})
    images = torch.arange(18, dtype=torch.float32).reshape(3, 3, 1, 2) ** 2 / 100
    mix_up = v2.MixUp(num_classes=3)
    mixed = []
    for share in [0.2, 0.7]:
        mix_up._dist = torch.distributions.Categorical(torch.ones(1))
        mix_up._dist.sample = lambda _: torch.tensor(share)
        result, labels = mix_up(images, torch.tensor([0, 1, 2]))
        # Height x width x channels, as pixels are.
        values = result.permute(0, 2, 3, 1).flatten(1).tolist()
        mixed.append({"share": share, "images": values, "labels": labels.tolist()})
    pixels = images.permute(0, 2, 3, 1).flatten(1).tolist()
    text = json.dumps({"boxes": boxes, "mix_up": {"images": pixels, "mixed": mixed}})
    path = Path(__file__).parent.parent / "data" / "torchvision_draws.json"
    path.write_text(text.replace('{"kind"', '\n{"kind"') + "\n")


if __name__ == "__main__":
    main()
