"""Makes ../data/multi_label.json: predictions of several labels per image, scored by scikit-learn.

    pip install scikit-learn==1.9.1
    python multi_label.py

A list of cases. Each has the classes' names, the `probabilities` of each example's classes, `labels` and `predicted` (the
classes whose probability is .5 or more) as lists of indices, and what scikit-learn makes of them with `zero_division=0`:
`report` (as numbers, with `accuracy_score` as `accuracy`), `text` and `text of 4 digits`, and the `matrices` of
`multilabel_confusion_matrix`. `binary_accuracy` is the share of right answers over examples and classes, as Keras'.
"""

import json
from pathlib import Path

import numpy as np
from sklearn.metrics import accuracy_score, classification_report, multilabel_confusion_matrix


def case(classes, labels, probabilities):
    probabilities = np.round(probabilities, 3)
    predicted = (probabilities >= 0.5).astype(int)
    options = {"target_names": classes, "zero_division": 0}
    report = classification_report(labels, predicted, output_dict=True, **options)
    indices = lambda rows: [np.flatnonzero(row).tolist() for row in rows]
    return {
        "classes": classes,
        "probabilities": probabilities.tolist(),
        "labels": indices(labels),
        "predicted": indices(predicted),
        "matrices": multilabel_confusion_matrix(labels, predicted).tolist(),
        "report": report | {"accuracy": accuracy_score(labels, predicted)},
        "binary_accuracy": float((labels == predicted).mean()),
        "text": classification_report(labels, predicted, **options).rstrip("\n"),
        "text of 4 digits": classification_report(labels, predicted, digits=4, **options).rstrip("\n"),
    }


def noisy(random, frequencies, count):
    """Labels of classes of these frequencies, and probabilities that go with them, mostly."""
    labels = (random.random((count, len(frequencies))) < frequencies).astype(int)
    return labels, np.clip(0.25 + 0.5 * labels + random.normal(0, 0.25, labels.shape), 0, 1)


def main():
    random = np.random.default_rng(0)
    cases = [
        # Many are of no class, and of many none is predicted.
        case(["cat", "dog", "outdoor"], *noisy(random, [0.3, 0.2, 0.4], 40)),
        # Nothing is a bird, and no dog is found.
        case(
            ["bird", "cat", "dog"],
            np.array([[0, 1, 1], [0, 0, 1], [0, 0, 0], [0, 1, 0]]),
            np.array([[0.9, 0.8, 0.2], [0.1, 0.7, 0.4], [0.2, 0.1, 0.3], [0.4, 0.6, 0.1]]),
        ),
    ]
    out = Path(__file__).parent.parent / "data" / "multi_label.json"
    out.write_text("[" + ",\n".join(json.dumps(case) for case in cases) + "]\n")


if __name__ == "__main__":
    main()
