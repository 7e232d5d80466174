"""Makes ../data/early_stopping.json: when Keras' EarlyStopping stops, and which epoch's weights it restores.

    pip install tensorflow-cpu==2.21.0 keras==3.15.1
    python early_stopping.py

A list of cases: what the callback is made with, the `initial_epoch`, and the monitored `values` epoch by epoch (null
for NaN). `stopped` is the epoch after which it stopped, null if it never did; `restored` the epoch whose weights it gave
back in the end. Both count from 1. All values are multiples of 1/64: Keras compares in 32 bits.
"""

import json
import math
import random
from pathlib import Path

from keras.callbacks import EarlyStopping


class Model:
    """Its weights are the epoch's number."""

    metrics = ()
    stop_training = False

    def get_weights(self):
        return self.weights

    def set_weights(self, weights):
        self.weights = weights


def case(monitor, patience, min_delta, initial_epoch, values):
    mode = "min" if monitor == "val_loss" else "max"
    callback = EarlyStopping(
        monitor, min_delta, patience, mode=mode, restore_best_weights=True
    )
    model = Model()
    callback.set_model(model)
    callback.on_train_begin()
    for epoch, value in enumerate(values, initial_epoch):
        model.weights = epoch + 1
        callback.on_epoch_end(epoch, {monitor: value})
        if model.stop_training:
            break
    callback.on_train_end()
    return {
        "monitor": monitor,
        "patience": patience,
        "min_delta": min_delta,
        "initial_epoch": initial_epoch,
        "values": [None if math.isnan(value) else value for value in values],
        "stopped": epoch + 1 if model.stop_training else None,
        "restored": model.weights,
    }


def main():
    numbers = random.Random(0)
    cases = []
    for monitor in ["val_loss", "val_accuracy"]:
        for patience in range(5):
            for min_delta in [0, 0, 2 / 64, -1 / 64]:
                values = [numbers.randrange(20, 45) / 64 for _ in range(12)]
                # Falling, or rising, as a validation does at first.
                values.sort(key=lambda value: value + numbers.random() / 3, reverse=monitor == "val_loss")
                values[numbers.randrange(1, 12)] = math.nan
                initial_epoch = numbers.choice([0, 0, 10])
                cases.append(case(monitor, patience, min_delta, initial_epoch, values))
    out = Path(__file__).parent.parent / "data" / "early_stopping.json"
    out.write_text("[" + ",\n".join(json.dumps(case) for case in cases) + "]\n")


if __name__ == "__main__":
    main()
