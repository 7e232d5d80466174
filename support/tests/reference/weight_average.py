"""Makes ../data/weight_average.json: 20 steps of weights, and their averages by PyTorch and Keras.

    pip install tensorflow-cpu==2.21.0 keras==3.15.1 torch==2.11.0
    python weight_average.py

`decay`, and step by step `weights` (three numbers, exact in 32 bits) and `averages` of `AveragedModel` with
`get_ema_multi_avg_fn`, which Keras' `use_ema` has as well.
"""

import json
from pathlib import Path

import keras
import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

DECAY = 0.9


def main():
    random = np.random.default_rng(0)
    variable = keras.Variable(random.standard_normal(3).astype(np.float32))
    optimizer = keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=DECAY)
    module = torch.nn.Linear(3, 1, bias=False)
    averaged = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    weights, averages = [], []
    for _ in range(20):
        optimizer.apply([random.standard_normal(3).astype(np.float32)], [variable])
        values = np.asarray(variable.numpy())
        with torch.no_grad():
            module.weight.copy_(torch.from_numpy(values.copy()))
        averaged.update_parameters(module)
        average = averaged.module.weight.detach().numpy()[0]
        np.testing.assert_allclose(optimizer._model_variables_moving_average[0].numpy(), average, rtol=1e-5)
        weights.append(values.tolist())
        averages.append(average.tolist())
    out = Path(__file__).parent.parent / "data" / "weight_average.json"
    out.write_text(json.dumps({"decay": DECAY, "weights": weights, "averages": averages}) + "\n")
    print(out.stat().st_size, "bytes", averages[-1])


if __name__ == "__main__":
    main()
