"""Makes ../data/learning_rates.json: what fastai's learning-rate finder makes of sequences of losses.

    pip install fastai==2.8.12
    python learning_rates.py

A list of cases: `start`, `end` and `steps` of the search, `losses` (the raw ones, step by step), and what fastai makes of
them: the `rates` and `smoothed` losses up to where `LRFinder` ends the training, and its suggestions `valley`,
`steep` and `minimum`. Rates, smoothing and suggestions are computed by fastai's own functions; the lines of `search` that are not
are those of `LRFinder.before_batch`, `LRFinder.after_batch` and `lr_find`, without a learner around them.
"""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import torch
from fastai.callback.schedule import SchedExp, minimum, steep, valley
from fastai.learner import AvgSmoothLoss


def search(start, end, steps, losses):
    schedule, smooth = SchedExp(start, end), AvgSmoothLoss()
    smooth.reset()
    rates, smoothed, best = [], [], math.inf
    for step, loss in enumerate(losses):
        rates.append(schedule(step / steps))
        smooth.accumulate(SimpleNamespace(loss=torch.tensor(loss)))
        smoothed.append(smooth.value.item())
        best = min(best, smoothed[-1])
        if smoothed[-1] > 4 * best or step + 1 >= steps:
            break
    considered = torch.tensor(rates[steps // 10 : -5]), torch.tensor(smoothed[steps // 10 : -5])
    return {
        "start": start,
        "end": end,
        "steps": steps,
        "losses": losses,
        "rates": rates,
        "smoothed": smoothed,
        "valley": valley(*considered, steps)[0],
        "steep": steep(*considered, steps)[0],
        "minimum": minimum(*considered, steps)[0],
    }


def losses(seed, steps, falls, rises, speed):
    """Falls around one step, with noise, and rises exponentially from another on."""
    generator = torch.Generator().manual_seed(seed)
    step = torch.arange(steps)
    fallen = 0.15 + 0.6 / (1 + ((step - falls) / 4).exp())
    rising = (speed * (step - rises).clamp(min=0)).exp() - 1
    noise = 1 + 0.1 * torch.randn(steps, generator=generator)
    return [round(loss, 5) for loss in (fallen * noise + rising).tolist()]


def main():
    cases = [
        search(1e-7, 10, 100, losses(0, 100, 55, 80, 0.3)),
        # Never diverges.
        search(1e-7, 10, 100, losses(1, 100, 70, 100, 0.1)),
        # Falls at once.
        search(1e-5, 1, 40, losses(2, 40, 0, 20, 0.3)),
        search(1e-6, 0.1, 57, losses(3, 57, 25, 45, 0.5)),
    ]
    out = Path(__file__).parent.parent / "data" / "learning_rates.json"
    out.write_text("[" + ",\n".join(json.dumps(case) for case in cases) + "]\n")


if __name__ == "__main__":
    main()
