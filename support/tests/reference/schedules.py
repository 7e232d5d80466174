"""Makes ../data/schedules.json: the learning rates of Keras' and fastai's schedules.

    pip install torch==2.11.0 keras==3.15.1 fastai==2.8.12
    KERAS_BACKEND=torch python schedules.py

`cosine_decay`: Keras' `CosineDecay` step by step, from `rate`, with a warm-up over the share `warmup` of the steps.
`one_cycle`: what the schedules that fastai's `fit_one_cycle` makes give before each batch.
`reduce_on_plateau`: the learning rate after each epoch of Keras' `ReduceLROnPlateau`, for the monitored `values`, which
are multiples of 1/64: Keras compares in 32 bits.
"""

import json
import random
from pathlib import Path
from types import SimpleNamespace

from fastai.callback.schedule import combined_cos
from keras.callbacks import ReduceLROnPlateau
from keras.optimizers import SGD
from keras.optimizers.schedules import CosineDecay


def number(value):
    return float(f"{float(value):.9g}")


def cosine_decay(rate, steps, warmup, end):
    first = round(warmup * steps)
    options = dict(warmup_target=rate, warmup_steps=first) if first else {}
    schedule = CosineDecay(0.0 if first else rate, steps - first, alpha=end, **options)
    rates = [number(schedule(step)) for step in range(steps)]
    return {"rate": rate, "steps": steps, "warmup": warmup, "end": end, "rates": rates}


def one_cycle(rate, epochs, batches, pct_start=0.25, div=25.0, div_final=1e5):
    rates = combined_cos(pct_start, rate / div, rate, rate / div_final)
    momentums = combined_cos(pct_start, 0.95, 0.85, 0.95)
    # As `TrainEvalCallback` counts.
    positions = [epoch / epochs + batch / (epochs * batches) for epoch in range(epochs) for batch in range(batches)]
    return {
        "rate": rate,
        "steps": epochs * batches,
        "pct_start": pct_start,
        "div": div,
        "div_final": div_final,
        "rates": [number(rates(position)) for position in positions],
        "momentums": [number(momentums(position)) for position in positions],
    }


def reduce_on_plateau(monitor, rate, values, **options):
    callback = ReduceLROnPlateau(monitor, mode="min" if monitor == "val_loss" else "max", **options)
    optimizer = SGD(rate)
    callback.set_model(SimpleNamespace(optimizer=optimizer))
    callback.on_train_begin()
    rates = []
    for epoch, value in enumerate(values):
        callback.on_epoch_end(epoch, {monitor: value})
        rates.append(number(optimizer.learning_rate.value))
    return {"monitor": monitor, "rate": rate, **options, "values": values, "rates": rates}


def plateaus():
    numbers = random.Random(0)
    for monitor in ["val_loss", "val_accuracy"]:
        for patience in range(1, 4):
            for cooldown in [0, 2, 3]:
                for min_delta in [0, 2 / 64]:
                    values = [numbers.randrange(20, 45) / 64 for _ in range(14)]
                    # Falling, or rising, as a validation does at first.
                    values.sort(key=lambda value: value + numbers.random() / 3, reverse=monitor == "val_loss")
                    options = dict(factor=numbers.choice([0.1, 0.5]), patience=patience, min_delta=min_delta)
                    options |= dict(cooldown=cooldown, min_lr=numbers.choice([0, 0.003]))
                    yield reduce_on_plateau(monitor, 0.01, values, **options)
                # One that stays where it is.
                yield reduce_on_plateau(monitor, 0.01, [0.5] * 14, **options)


def main():
    cases = {
        "cosine_decay": [
            cosine_decay(0.01, 20, 0, 0),
            cosine_decay(0.01, 21, 0.25, 0),
            cosine_decay(2e-3, 30, 0.1, 0.05),
        ],
        "one_cycle": [
            one_cycle(1e-3, 5, 8),
            # Both phases of `fine_tune`.
            one_cycle(2e-3, 1, 7, pct_start=0.99),
            one_cycle(1e-3, 3, 7, pct_start=0.3, div=5.0),
        ],
        "reduce_on_plateau": list(plateaus()),
    }
    lists = ",\n".join(f'"{name}": [' + ",\n".join(map(json.dumps, some)) + "]" for name, some in cases.items())
    out = Path(__file__).parent.parent / "data" / "schedules.json"
    out.write_text(f"{{{lists}}}\n")


if __name__ == "__main__":
    main()
