"""Makes ../data/classification.json: predictions counted and scored by scikit-learn.

    pip install scikit-learn==1.9.1
    python classification.py

A list of cases. Each has the classes' names, `labels` and `predicted` as indices into them, and what scikit-learn makes
of them with every class listed and `zero_division=0`: `matrix`, `report` (as numbers), `text` and `text of 4 digits`
(each line's trailing blanks kept, the line feed at the end not). `most_confused` is fastai's formula
(`ClassificationInterpretation.most_confused`) on scikit-learn's matrix, the first seven.
"""

import json
from operator import itemgetter
from pathlib import Path

import numpy as np
from sklearn.metrics import classification_report, confusion_matrix

TEN = "airplane automobile bird cat deer dog frog horse ship truck".split()


def most_confused(matrix, classes):
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    rows = [(classes[i], classes[j], int(wrong[i][j])) for i, j in zip(*np.where(wrong >= 1))]
    return sorted(rows, key=itemgetter(2), reverse=True)[:7]


def case(classes, labels, predicted):
    options = {"labels": list(range(len(classes))), "target_names": classes, "zero_division": 0}
    matrix = confusion_matrix(labels, predicted, labels=options["labels"])
    return {
        "classes": classes,
        "labels": [int(label) for label in labels],
        "predicted": [int(label) for label in predicted],
        "matrix": matrix.tolist(),
        "most_confused": most_confused(matrix, classes),
        "report": classification_report(labels, predicted, output_dict=True, **options),
        "text": classification_report(labels, predicted, **options).rstrip("\n"),
        "text of 4 digits": classification_report(labels, predicted, digits=4, **options).rstrip("\n"),
    }


def noisy(random, classes, count, right):
    """Labels of the given classes, and predictions of any of them, so many of which are right."""
    labels = random.choice(classes, count)
    return labels, np.where(random.random(count) < right, labels, random.choice(classes, count))


def main():
    random = np.random.default_rng(0)
    few = [c for c in range(10) if c != 2]
    ten_labels, ten_predicted = noisy(random, few, 300, 0.7)
    cases = [
        case(["cats", "dogs"], *noisy(random, [0, 1], 120, 0.8)),
        # Dogs are never predicted.
        case(["cats", "dogs"], [0, 1, 0, 1, 1], [0, 0, 0, 0, 0]),
        # There are no dogs, but one is predicted.
        case(["cats", "dogs"], [0, 0, 0], [0, 1, 0]),
        # There is no bird, and no ship is predicted.
        case(TEN, ten_labels, np.where(ten_predicted == 8, 0, ten_predicted)),
        # A bird is predicted once though there is none; one name is longer than any heading.
        case(
            [*TEN[:9], "truck or something like one"],
            [*ten_labels, 4],
            [*ten_predicted, 2],
        ),
    ]
    out = Path(__file__).parent.parent / "data" / "classification.json"
    out.write_text("[" + ",\n".join(json.dumps(case) for case in cases) + "]\n")


if __name__ == "__main__":
    main()
