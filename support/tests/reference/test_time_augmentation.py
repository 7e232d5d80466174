"""Makes ../data/test_time_augmentation.json: the probabilities that fastai's test-time augmentation gives.

    pip install fastai==2.8.12 torch==2.11.0
    python test_time_augmentation.py

The model gives the logits that it is told, others at each pass: first those of the four augmented variants, then those
of the images themselves. `Learner.tta` does the rest, with its defaults and with another `beta`.
"""

import json
from contextlib import nullcontext
from pathlib import Path

import torch
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.losses import BCEWithLogitsLossFlat, CrossEntropyLossFlat


class Images(list):
    """A dataset whose images are the same in training and in validation."""

    def set_split_idx(self, _):
        return nullcontext()


class Told(torch.nn.Module):
    """Returns one pass' logits after the other."""

    def __init__(self, passes):
        super().__init__()
        self.passes = iter(passes)
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, _):
        return next(self.passes)


def main():
    torch.manual_seed(0)
    cases = []
    for loss, units in [(CrossEntropyLossFlat(), 3), (BCEWithLogitsLossFlat(), 1)]:
        passes = torch.randn(5, 4, units) * 3
        labels = [torch.tensor(float(n % 2) if units == 1 else n % 2) for n in range(4)]
        for beta in [0.25, 0.6]:
            batches = DataLoader(Images((torch.zeros(3, 2, 2), label) for label in labels), bs=4)
            learner = Learner(DataLoaders(batches, batches), Told(passes), loss_func=loss)
            learner.remove_cbs(learner.cbs.filter(lambda callback: callback.name == "progress"))
            probabilities, _ = learner.tta(n=4, beta=beta)
            case = {"beta": beta, "variants": passes[:4].tolist(), "image": passes[4].tolist()}
            cases.append({**case, "probabilities": probabilities.tolist()})
    path = Path(__file__).parent.parent / "data" / "test_time_augmentation.json"
    path.write_text(json.dumps(cases) + "\n")


if __name__ == "__main__":
    main()
