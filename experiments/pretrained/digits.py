"""A ResNet with batch norms, trained here at full width alone, on digits."""

import jax
import numpy as np
import optax

import mslice_jax as ms
from mslice_jax import data
from mslice_jax.models import CifarResNet
from mslice_jax.train import TrainState, make_train_step

from .subject import Subject, split

BATCH = 32


def subject(
    *, held_out: int, seed: int, at_most: int | None, epochs: int, widen: int
) -> Subject:
    """Trains ResNet-8 for some epochs, and gives it as a network that somebody had."""
    digits = data.load("digits")
    images = np.concatenate([digits.x_train, digits.x_test])
    labels = np.concatenate([digits.y_train, digits.y_test])
    inputs = ((images - digits.mean) / digits.std).astype(np.float32)
    inputs, labels = inputs[:at_most], labels[:at_most]
    parts = split(inputs, labels, held_out=held_out, seed=seed)
    model = CifarResNet(depth=8, widen=widen, num_classes=10)
    x, y = parts.train_inputs, parts.train_labels
    key = jax.random.key(seed)
    net = ms.upgrade(model, model.init(key, x[:2]), x[:2], rates=(1.0,), norm="shared")
    steps = epochs * (len(x) // BATCH)
    optimizer = optax.sgd(
        optax.cosine_decay_schedule(0.05, steps), momentum=0.9, nesterov=True
    )
    state = TrainState.create(net, optimizer, key=key)
    step = make_train_step(optimizer)
    for number in range(steps):
        chosen = np.random.default_rng((seed, number)).choice(len(x), BATCH, False)
        state, _ = step(state, (x[chosen], y[chosen]), (1.0,))
    return Subject(
        name="resnet",
        model=model,
        variables=state.net.variables,
        batch_norms=True,
        notes=(f"{len(inputs):,} digits; {epochs} epochs at full width.",),
        examples=parts,
    )
