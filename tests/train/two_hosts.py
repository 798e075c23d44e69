"""One of several processes of `test_hosts`: trains, and prints its losses as JSON.

python tests/train/two_hosts.py PORT NUMBER COUNT FSDP FOLDER [OTHER]

OTHER is the folder of a run on other devices, whose checkpoint is restored at the end.
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import mslice_jax as ms
from mslice_jax import data, schedules
from mslice_jax.train import (
    Checkpoints,
    Placement,
    Progress,
    TrainState,
    make_evaluate,
    make_train_step,
    sgd,
)

RATES = (0.5, 1.0)


class Perceptron(nn.Module):
    @nn.compact
    def __call__(self, x, *, train: bool = False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(16)(x))
        return nn.Dense(3)(nn.relu(nn.Dense(16)(nn.relu(x))))


def same(a, b) -> bool:
    """Whether this host's parts of two arrays are the same."""
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        a, b = jax.random.key_data(a), jax.random.key_data(b)
    parts = zip(a.addressable_shards, b.addressable_shards, strict=True)
    return all(np.array_equal(x.data, y.data) for x, y in parts)


def main(
    port: str, number: int, count: int, fsdp: int, folder: str, other: str = ""
) -> None:
    if count > 1:
        jax.distributed.initialize(f"localhost:{port}", count, number)
    random = np.random.default_rng(0)
    x = random.normal(size=(32, 5)).astype(np.float32)
    y = np.argmax(x @ random.normal(size=(5, 3)), axis=1).astype(np.int32)

    model = Perceptron()
    net = ms.upgrade(
        model, model.init(jax.random.key(1), x[:8]), x[:8],
        rates=RATES, norm="switchable", shards=4,
    )  # fmt: skip
    optimizer = sgd(0.1)
    placement = Placement(Placement.over(fsdp=fsdp).mesh, smallest=16)
    state = TrainState.create(net, optimizer, key=jax.random.key(0))
    state = placement.state(state)
    again = placement.state(state)  # data of other hosts cannot be placed twice
    pairs = zip(jax.tree.leaves(again), jax.tree.leaves(state), strict=True)
    stays = all(a is b for a, b in pairs)
    step = make_train_step(optimizer, placement=placement)
    draw = schedules.random(RATES, seed=5)
    batches = data.train_batches(x, y, 8, seed=0, host=(number, count))
    losses, rates = [], []
    for index in range(6):
        rates.append(draw(index))
        state, metrics = step(state, placement.batch(next(batches)), rates[-1])
        losses += [float(metrics[rate]["loss"]) for rate in rates[-1]]
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(state, Progress(epoch=1), accuracy=0.5)
        checkpoints.wait()
        fresh = TrainState.create(net, optimizer, key=jax.random.key(9))
        restored = checkpoints.restore(placement.state(fresh))
        assert restored is not None
        pairs = zip(jax.tree.leaves(restored[0]), jax.tree.leaves(state), strict=True)
        restores = all(same(a, b) for a, b in pairs) and restored[1].epoch == 1
    accuracy = make_evaluate(x, y, batch_size=16)(state.net)
    squares = jax.jit(lambda tree: sum(jnp.sum(w**2) for w in jax.tree.leaves(tree)))
    others = None
    if other:
        with Checkpoints(other) as checkpoints:
            fresh = TrainState.create(net, optimizer, key=jax.random.key(9))
            restored = checkpoints.restore(placement.state(fresh))
        assert restored is not None
        others = float(squares(restored[0].net.variables))
    print(
        json.dumps(
            {
                "losses": losses,
                "rates": rates,
                "accuracy": list(accuracy.values()),
                "restores": restores,
                "stays": stays,
                "weights": float(squares(state.net.variables)),
                "others": others,
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]), *sys.argv[5:])
