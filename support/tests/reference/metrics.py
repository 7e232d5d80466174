"""Makes ../data/metrics.json: metrics of logits and threshold curves of probabilities by scikit-learn.

    pip install scikit-learn==1.9.1
    python metrics.py

`cases`: `loss` (the Rust name in JSON), `logits` `[N, outputs]` exact in 32 bits, `labels` (class indices, or 0 and 1 for
each class), `metrics` by name. Rows come twice with different labels, so that there are ties. scikit-learn has no AUC of
classes one of which has no example: the mean is then over the others.

`curves`: `scores`, `labels` (0 and 1), and what `precision_recall_curve` makes of them.
"""

import json
from pathlib import Path

import numpy as np
from sklearn.metrics import (
    f1_score, precision_recall_curve, precision_score, recall_score, roc_auc_score, top_k_accuracy_score,
)


def auc(labels, probabilities):
    """Returns the mean over the classes that some examples are of and some are not; `labels` are `[N, classes]`."""
    both = [c for c in range(labels.shape[1]) if 0 < labels[:, c].sum() < len(labels)]
    mean = np.mean([roc_auc_score(labels[:, c], probabilities[:, c]) for c in both])
    if len(both) == labels.shape[1]:
        np.testing.assert_allclose(mean, roc_auc_score(labels, probabilities, average="macro"), rtol=1e-12)
    return mean


def case(loss, logits, labels):
    logits = logits.astype(np.float32).astype(np.float64)
    if loss == "sparse_categorical_crossentropy":
        exponentials = np.exp(logits - logits.max(1, keepdims=True))
        probabilities = exponentials / exponentials.sum(1, keepdims=True)
    else:
        probabilities = 1 / (1 + np.exp(-logits))
        if loss == "binary_crossentropy":
            probabilities = np.hstack([1 - probabilities, probabilities])
    classes = probabilities.shape[1]
    if loss == "multi_label_binary_crossentropy":
        metrics, truth, predicted, options = {}, labels, (probabilities > 0.5).astype(int), {}
    else:
        truth, predicted = labels, probabilities.argmax(1)
        options = {"labels": list(range(classes))}
        scores = probabilities[:, 1] if classes == 2 else probabilities
        metrics = {
            f"top_{k}_accuracy": top_k_accuracy_score(labels, scores, k=k, labels=list(range(classes)))
            for k in range(1, classes if classes > 2 else 1)
        }
        labels = np.eye(classes)[labels]
    options |= {"average": "macro", "zero_division": 0}
    metrics |= {
        "auc": auc(labels, probabilities),
        "precision": precision_score(truth, predicted, **options),
        "recall": recall_score(truth, predicted, **options),
        "f1_score": f1_score(truth, predicted, **options),
    }
    return {"loss": loss, "logits": logits.tolist(), "labels": np.asarray(truth).tolist(), "metrics": metrics}


def twice(logits):
    return np.concatenate([logits, logits]).round(2)


def curve(scores, labels):
    precision, recall, thresholds = precision_recall_curve(labels, scores)
    return {
        "scores": scores.tolist(),
        "labels": labels.tolist(),
        "thresholds": thresholds.tolist(),
        # Without the point at the end, which has no threshold.
        "precision": precision[:-1].tolist(),
        "recall": recall[:-1].tolist(),
    }


def main():
    random = np.random.default_rng(0)
    binary, sparse, multi = (
        f"{name}_crossentropy" for name in ["binary", "sparse_categorical", "multi_label_binary"]
    )
    some = random.integers(0, 4, 24)
    cases = [
        case(binary, twice(random.standard_normal((12, 1))), random.integers(0, 2, 24)),
        # All are predicted as dogs.
        case(binary, twice(3 + random.standard_normal((12, 1))), random.integers(0, 2, 24)),
        case(sparse, twice(2 * random.standard_normal((12, 4))), some),
        # Class 1 has no example, and equal logits within a row.
        case(sparse, twice(random.integers(-1, 2, (12, 4)) * (1 + np.arange(12)[:, None] / 8)), np.where(some == 1, 3, some)),
        case(multi, twice(random.standard_normal((12, 3))), random.integers(0, 2, (24, 3))),
        # No example is of class 0, all are of class 1.
        case(multi, twice(random.standard_normal((12, 3))), np.array([[0, 1, i % 3 // 2] for i in range(24)])),
    ]
    scores = random.random(20).round(1)
    curves = [
        curve(scores, (random.random(20) < scores).astype(int)),
        curve(random.random(9).round(3), random.integers(0, 2, 9)),
        curve(np.array([0.5, 0.25, 0.25]), np.array([1, 1, 1])),
    ]
    out = Path(__file__).parent.parent / "data" / "metrics.json"
    out.write_text(json.dumps({"cases": cases, "curves": curves}) + "\n")
    print(*(case["metrics"] for case in cases), sep="\n")


if __name__ == "__main__":
    main()
