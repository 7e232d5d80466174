"""Makes ../data/optimizers.json: 20 steps of PyTorch's and of Keras' optimizers.

    pip install torch==2.11.0 keras==3.15.1 numpy
    KERAS_BACKEND=torch python optimizers.py

`before` holds the weights (six of a kernel, then two of a bias) and `gradients` those of 20 steps, one variable's after the
other's, as multiples of 1/64. `cases` are the optimizers: whose (`by`), the name and `options` that ours is made with, the
learning `rates` and `momentums` of the steps where they change, and the weights `after` steps 1, 2 and 20.

The bias is left out of weight decay, as ours leave it out. PyTorch's and Keras' epsilons stand in different places of Adam's
formula, and Keras' in another one of RMSprop's than TensorFlow's of 2019: Keras' cases have one that is too small to matter.
"""

import json
import random
from pathlib import Path

import keras
import torch

STEPS = 20
TINY = 1e-20


def flat(variables):
    return [value for variable in variables for value in variable.detach().reshape(-1).tolist()]


def by_torch(name, options, factory, before, gradients, clip=None, rates=None, momentums=None, factors=(1, 1)):
    kernel, bias = torch.tensor(before[:6]).view(2, 3), torch.tensor(before[6:])
    variables = [kernel.requires_grad_(), bias.requires_grad_()]
    groups = [{"params": [kernel]}, {"params": [bias], "weight_decay": 0}]
    optimizer = factory(groups)
    base = [group["lr"] for group in optimizer.param_groups]
    after = []
    for step, gradient in enumerate(gradients):
        for group, rate, factor in zip(optimizer.param_groups, base, factors):
            group["lr"] = factor * (rates[step] if rates else rate)
            if momentums and "betas" in group:
                group["betas"] = (momentums[step], group["betas"][1])
            elif momentums:
                group["momentum"] = momentums[step]
        kernel.grad, bias.grad = torch.tensor(gradient[:6]).view(2, 3), torch.tensor(gradient[6:])
        if clip:
            clip(variables)
        optimizer.step()
        if step in [0, 1, STEPS - 1]:
            after.append(flat(variables))
    return {"by": "PyTorch", "name": name, "options": options, "rates": rates, "momentums": momentums, "after": after}


def by_keras(name, options, optimizer, before, gradients):
    variables = [keras.Variable([before[:3], before[3:6]]), keras.Variable(before[6:], name="bias")]
    if options.get("weight_decay"):
        optimizer.exclude_from_weight_decay(var_names=["bias"])
    optimizer.build(variables)
    after = []
    for step, gradient in enumerate(gradients):
        gradient = [torch.tensor(gradient[:6]).view(2, 3), torch.tensor(gradient[6:])]
        optimizer.apply(gradient, variables)
        if step in [0, 1, STEPS - 1]:
            after.append(flat([variable.value for variable in variables]))
    return {"by": "Keras", "name": name, "options": options, "rates": None, "momentums": None, "after": after}


def main():
    numbers = random.Random(0)
    draw = lambda scale: [numbers.randrange(-64, 65) / 64 * scale for _ in range(8)]
    before, gradients = draw(1), [draw(2) for _ in range(STEPS)]
    rates = [numbers.randrange(1, 65) / 4096 for _ in range(STEPS)]
    momentums = [numbers.randrange(32, 62) / 64 for _ in range(STEPS)]
    optim, keras_optim = torch.optim, keras.optimizers
    data = (before, gradients)
    norm = lambda variables: torch.nn.utils.clip_grad_norm_(variables, 1.5)
    value = lambda variables: torch.nn.utils.clip_grad_value_(variables, 0.5)

    def both(variables):
        value(variables)
        torch.nn.utils.clip_grad_norm_(variables, 0.75)

    rms = dict(lr=0.01, alpha=0.9, eps=1e-7)
    sgd = dict(lr=0.05, momentum=0.9)
    nesterov = dict(nesterov=True, **sgd)
    fastai = dict(lr=0.01, betas=(0.9, 0.99), eps=1e-5)
    torch_cases = [
        ("RMSprop", {"rate": 0.01}, lambda p: optim.RMSprop(p, **rms), {}),
        ("RMSprop", {"rate": 0.01, "weight_decay": 0.1}, lambda p: optim.RMSprop(p, weight_decay=0.1, **rms), {}),
        ("RMSprop", {"rate": 0.01}, lambda p: optim.RMSprop(p, **rms), {"rates": rates}),
        ("SGD", {"rate": 0.05}, lambda p: optim.SGD(p, lr=0.05), {}),
        ("SGD", {"rate": 0.05, "momentum": 0.9}, lambda p: optim.SGD(p, **sgd), {}),
        ("SGD", {"rate": 0.05, "momentum": 0.9, "weight_decay": 0.1}, lambda p: optim.SGD(p, weight_decay=0.1, **sgd), {}),
        ("SGD", {"rate": 0.05, "momentum": 0.9, "nesterov": 1}, lambda p: optim.SGD(p, **nesterov), {}),
        (
            "SGD",
            {"rate": 0.05, "momentum": 0.9, "nesterov": 1},
            lambda p: optim.SGD(p, **nesterov),
            {"rates": rates, "momentums": momentums},
        ),
        ("SGD", {"rate": 0.05, "clip_norm": 1.5}, lambda p: optim.SGD(p, lr=0.05), {"clip": norm}),
        ("SGD", {"rate": 0.05, "clip_value": 0.5}, lambda p: optim.SGD(p, lr=0.05), {"clip": value}),
        ("SGD", {"rate": 0.05, "clip_value": 0.5, "clip_norm": 0.75}, lambda p: optim.SGD(p, lr=0.05), {"clip": both}),
        ("Adam", {"rate": 0.01}, lambda p: optim.Adam(p, lr=0.01), {}),
        ("Adam", {"rate": 0.01, "betas": [0.9, 0.99], "epsilon": 1e-5}, lambda p: optim.Adam(p, **fastai), {}),
        ("Adam", {"rate": 0.01, "weight_decay": 0.1}, lambda p: optim.Adam(p, lr=0.01, weight_decay=0.1), {}),
        ("Adam", {"rate": 0.01}, lambda p: optim.Adam(p, lr=0.01), {"rates": rates, "momentums": momentums}),
        ("AdamW", {"rate": 0.01}, lambda p: optim.AdamW(p, lr=0.01), {}),
        ("AdamW", {"rate": 0.01, "weight_decay": 0.5}, lambda p: optim.AdamW(p, lr=0.01, weight_decay=0.5), {}),
        # The kernel is in the base, whose only layer is in the second half.
        (
            "AdamW",
            {"rate": 0.01, "weight_decay": 0.5, "discriminative": 0.0625},
            lambda p: optim.AdamW(p, lr=0.01, weight_decay=0.5),
            {"factors": (0.25, 1)},
        ),
    ]
    cases = [by_torch(name, options, factory, *data, **more) for name, options, factory, more in torch_cases]
    keras_cases = [
        ("RMSprop", {"rate": 0.01}, keras_optim.RMSprop(0.01, epsilon=TINY)),
        ("SGD", {"rate": 0.05}, keras_optim.SGD(0.05)),
        ("SGD", {"rate": 0.05, "momentum": 0.9}, keras_optim.SGD(0.05, momentum=0.9)),
        ("SGD", {"rate": 0.05, "momentum": 0.9, "nesterov": 1}, keras_optim.SGD(0.05, momentum=0.9, nesterov=True)),
        ("SGD", {"rate": 0.05, "clip_norm": 1.5}, keras_optim.SGD(0.05, global_clipnorm=1.5)),
        ("SGD", {"rate": 0.05, "clip_value": 0.5}, keras_optim.SGD(0.05, clipvalue=0.5)),
        ("Adam", {"rate": 0.01}, keras_optim.Adam(0.01, epsilon=TINY)),
        ("Adam", {"rate": 0.01, "betas": [0.8, 0.99]}, keras_optim.Adam(0.01, 0.8, 0.99, epsilon=TINY)),
        ("AdamW", {"rate": 0.01, "weight_decay": 0.5}, keras_optim.AdamW(0.01, weight_decay=0.5, epsilon=TINY)),
    ]
    cases += [by_keras(name, options, optimizer, *data) for name, options, optimizer in keras_cases]
    for case in cases:
        case["after"] = [[float(f"{value:.8g}") for value in weights] for weights in case["after"]]
    out = Path(__file__).parent.parent / "data" / "optimizers.json"
    lines = ",\n".join(json.dumps(case) for case in cases)
    out.write_text(f'{{"before": {json.dumps(before)},\n"gradients": {json.dumps(gradients)},\n"cases": [{lines}]}}\n')


if __name__ == "__main__":
    main()
