"""Logistic regression, calibration error, temperature, doubtful labels and distances, by the libraries that have them.

    pip install numpy scipy scikit-learn==1.9.1 cleanlab==2.9.0 torch==2.11.0 torchmetrics==1.9.0
    python analysis.py ../data/analysis.json

`probe`: features `[N, 6]` (one of them constant) and labels of two and of three classes; kernel, bias and accuracy of
scikit-learn's `LogisticRegression` on standardized features, for the features as they are.
`calibration`: logits and labels; the expected calibration error by torchmetrics, 15 bins, and the temperature at which
scikit-learn's `log_loss` is least, by SciPy.
`doubtful`: labels and probabilities; the issues that cleanlab finds by confident learning, ranked by self-confidence.
`novelty`: features and labels; squared Mahalanobis distances to the nearest class of other features, the covariance by
scikit-learn's probabilistic `PCA` of what is left of the normalized features without their class' mean.
"""

import json
import sys

import numpy as np
import torch
from cleanlab.filter import find_label_issues
from scipy.optimize import minimize_scalar
from scipy.special import softmax
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torchmetrics.functional.classification import multiclass_calibration_error

random = np.random.default_rng(0)


def rounded(values):
    """Returns values that JSON holds exactly as 32-bit floats do."""
    return np.asarray(values, np.float32).round(4).astype(np.float64)


def examples(classes, count=40, features=6):
    labels = np.arange(count) % classes
    values = random.normal(size=(count, features)) * np.arange(1, features + 1) + 3
    values[:, : classes - 1] += 2 * np.eye(classes)[labels][:, 1:]
    values[:, -1] = 7
    return rounded(values), labels


def probe(classes, c):
    values, labels = examples(classes)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=c, tol=1e-10, max_iter=10_000))
    model.fit(values, labels)
    scale, regression = model[0], model[1]
    kernel = regression.coef_ / scale.scale_
    bias = regression.intercept_ - kernel @ scale.mean_
    return {
        "classes": classes,
        "c": c,
        "features": values.tolist(),
        "labels": labels.tolist(),
        "kernel": kernel.tolist(),
        "bias": bias.tolist(),
        "accuracy": model.score(values, labels),
    }


def calibration(classes):
    labels = random.integers(classes, size=200)
    logits = rounded(3 * random.normal(size=(200, classes)) + 2 * np.eye(classes)[labels])
    if classes == 2:
        # One logit: that of class 1, against class 0's of 0.
        logits[:, 0] = 0
    error = lambda t: multiclass_calibration_error(
        torch.tensor(softmax(logits / t, 1)), torch.tensor(labels), classes, n_bins=15
    ).item()
    loss = lambda t: log_loss(labels, softmax(logits / t, 1))
    best = minimize_scalar(loss, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-10}).x
    return {
        "logits": (logits[:, 1:] if classes == 2 else logits).tolist(),
        "labels": labels.tolist(),
        "temperature": best,
        "errors": [error(1), error(best)],
        "losses": [loss(1), loss(best)],
    }


def doubtful(classes):
    labels = random.integers(classes, size=60)
    true = np.where(random.random(60) < 0.2, random.integers(classes, size=60), labels)
    probabilities = softmax(random.normal(size=(60, classes)) + 2 * np.eye(classes)[true], 1)
    issues = find_label_issues(
        labels, probabilities, filter_by="confident_learning", return_indices_ranked_by="self_confidence"
    )
    return {
        "labels": labels.tolist(),
        "probabilities": probabilities.tolist(),
        "issues": issues.tolist(),
    }


def novelty(classes, directions):
    values, labels = examples(classes, 2 * directions + classes, 20)
    others = rounded(random.normal(size=(10, 20)) * 4 + 2)
    unit = lambda values: values / np.linalg.norm(values, axis=1, keepdims=True)
    means = np.stack([unit(values)[labels == c].mean(0) for c in range(classes)])
    within = PCA(n_components=directions, svd_solver="full").fit(unit(values) - means[labels])
    offsets = unit(others)[:, None] - means
    distances = np.einsum("ncf,fg,ncg->nc", offsets, within.get_precision(), offsets)
    return {
        "features": values.tolist(),
        "labels": labels.tolist(),
        "others": others.tolist(),
        # In units of the noise's variance.
        "distances": (distances.min(1) * within.noise_variance_).tolist(),
    }


def main():
    with open(sys.argv[1], "w") as file:
        cases = {
            "probe": [probe(2, 0.5), probe(3, 0.05), probe(3, 5)],
            "calibration": [calibration(2), calibration(5)],
            "doubtful": [doubtful(2), doubtful(4)],
            "novelty": [novelty(3, 12)],
        }
        json.dump(cases, file, separators=(",", ":"))


if __name__ == "__main__":
    main()
