"""Makes ../data/sampler.json: examples drawn by PyTorch's WeightedRandomSampler, and scikit-learn's balanced weights.

    pip install torch==2.11.0 scikit-learn==1.9.1 scipy
    python sampler.py

`weights` of some examples, and how often PyTorch drew each (`counts`) in `draws` draws with replacement. `chi_squared` is
the quantile .999 of the statistic by which two such counts are compared, `sum((a - b)**2 / (a + b))` over the examples that
can be drawn. `balanced` are scikit-learn's weights of examples of the classes `labels`.
"""

import json
from pathlib import Path

import torch
from scipy.stats import chi2
from sklearn.utils.class_weight import compute_sample_weight
from torch.utils.data import WeightedRandomSampler

DRAWS = 20_000


def main():
    weights = [1.0, 0.5, 0.0, 3.0, 0.25, 1.0, 8.0, 0.0, 2.5, 0.125]
    sampler = WeightedRandomSampler(weights, DRAWS, generator=torch.Generator().manual_seed(0))
    drawn = torch.tensor(list(sampler))
    assert len(drawn) == len(sampler) == DRAWS
    labels = [0] * 12 + [1] * 3 + [2]
    data = {
        "weights": weights,
        "draws": DRAWS,
        "counts": torch.bincount(drawn, minlength=len(weights)).tolist(),
        "chi_squared": chi2.ppf(0.999, sum(weight > 0 for weight in weights) - 1),
        "labels": labels,
        "balanced": compute_sample_weight("balanced", labels).tolist(),
    }
    out = Path(__file__).parent.parent / "data" / "sampler.json"
    out.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
