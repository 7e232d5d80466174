"""How well methods tell images of other classes from those trained on, by the features that `--example features` writes.

    TRANSFER_DATASET=cifar10 TRANSFER_LIMIT=all cargo run -p support --example features -- features.safetensors efficientnet_lite0
    python novelty.py features.safetensors --known 3 5

Fits each method to the training images of the known classes, and prints the AUROC of its score over the validation and
test images: those of the other classes are the strangers. `directions` is the one that `Sequential::calibrate` takes.
"""

import argparse
import json

import numpy as np
from safetensors.numpy import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def unit(values):
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def scores(train, labels):
    """Returns each method's score of features: the higher, the stranger."""
    regression = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000)).fit(train, labels)
    neighbours = unit(train)
    classes = np.unique(labels)
    means = np.stack([unit(train)[labels == c].mean(0) for c in classes])
    within = unit(train) - means[np.searchsorted(classes, labels)]
    variances, vectors = np.linalg.eigh(within.T @ within / (len(within) - 1))

    def distance(count):
        """Mahalanobis', with `count` directions' own variances and one for all others."""
        split = len(variances) - count
        noise = variances[:split].mean()
        main = vectors[:, split:] * np.sqrt(1 - noise / variances[split:])

        def squared(features):
            offsets = unit(features)[:, None] - means
            return ((offsets**2).sum(2) - ((offsets @ main) ** 2).sum(2)).min(1)

        return squared

    return {
        "highest probability": lambda features: -regression.predict_proba(features).max(1),
        "10 neighbours": lambda features: -np.sort(unit(features) @ neighbours.T, 1)[:, -10],
        **{f"directions {count}": distance(count) for count in (0, 16, 64, 256)},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("features")
    parser.add_argument("--known", type=int, nargs="+", required=True, help="labels")
    arguments = parser.parse_args()
    tensors = load_file(arguments.features)
    known = np.isin(tensors["train/labels"], arguments.known)
    train, labels = tensors["train"][known], tensors["train/labels"][known]
    held_out = [part for part in ("validation", "test") if part in tensors]
    features = np.concatenate([tensors[part] for part in held_out])
    stranger = ~np.isin(np.concatenate([tensors[f"{part}/labels"] for part in held_out]), arguments.known)
    for name, score in scores(train.astype(np.float64), labels).items():
        print(json.dumps({"method": name, "auroc": round(roc_auc_score(stranger, score(features)), 4)}))


if __name__ == "__main__":
    main()
