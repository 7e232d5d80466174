"""Logistic regression (scikit-learn) on the features that `--example features` writes.

    python logistic_regression.py features.safetensors

What a linear classifier on the frozen base can reach: the strength of its regularization is chosen by
the validation pictures, as the epoch is in `notebooks/own_images.ipynb`; the test pictures judge.
"""

import argparse
import json

from safetensors.numpy import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

STRENGTHS = [10.0**exponent for exponent in range(-5, 3)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("features")
    tensors = load_file(parser.parse_args().features)
    parts = {name: (tensors[name], tensors[f"{name}/labels"]) for name in ["train", "validation", "test"]}

    def fitted(c):
        return make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=2000)).fit(*parts["train"])

    models = {c: fitted(c) for c in STRENGTHS}
    best = max(models, key=lambda c: models[c].score(*parts["validation"]))
    print(json.dumps({
        "C": best,
        "validation_accuracy": models[best].score(*parts["validation"]),
        "test_accuracy": models[best].score(*parts["test"]),
        "test_accuracy_by_C": {c: model.score(*parts["test"]) for c, model in models.items()},
    }))


if __name__ == "__main__":
    main()
