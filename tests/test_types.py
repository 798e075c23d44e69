"""Shapes in public signatures are correct; beartype checks them in tests.

The checks are installed at import, so they run in their own process: otherwise they
would stand between the user's lines and the functions here.
"""

import pathlib
import subprocess
import sys
import textwrap

ROOT = pathlib.Path(__file__).resolve().parents[1]

SCRIPT = """
import jaxtyping
import tests.checker

checked = ["mslice_jax.nn", "mslice_jax.models", "mslice_jax.data.augment"]
checked += ["mslice_jax.adapters.norms", "mslice_jax.train.losses"]
with jaxtyping.install_import_hook(checked, "tests.checker.check"):
    import jax, jax.numpy as jnp
    import mslice_jax as ms
    from mslice_jax import models, nn
    from mslice_jax.adapters.norms import group_norm
    from mslice_jax.data.augment import crop_and_flip, normalize
    from mslice_jax.train import losses

key = jax.random.key(0)


def ones(*shape, dtype=jnp.float32):
    return jnp.ones(shape, dtype)


def call(layer, *args, **kwargs):
    return jax.eval_shape(
        lambda: layer.init_with_output(key, *args, **kwargs)[0]
    )


right = {
    "Dense": lambda: call(nn.Dense(8), ones(3, 2, 6)),
    "Conv": lambda: call(nn.Conv(8, (3, 3)), ones(2, 5, 5, 8)),
    "Embed": lambda: call(nn.Embed(5, 8), ones(2, 3, dtype=int), 0.5),
    "GroupNorm": lambda: call(nn.GroupNorm(), ones(2, 5, 5, 8)),
    "LayerNorm": lambda: call(nn.LayerNorm(), ones(8)),
    "RMSNorm": lambda: call(nn.RMSNorm(), ones(3, 8)),
    "BatchNorm": lambda: call(nn.BatchNorm((1.0,)), ones(3, 8), 1.0, True),
    "attention": lambda: call(nn.MultiHeadAttention(4), ones(2, 3, 8), ones(2, 5, 8)),
    "LSTM": lambda: call(nn.LSTMCell(8), (ones(2, 8), ones(2, 8)), ones(2, 6)),
    "GRU": lambda: call(nn.GRUCell(8), ones(2, 8), ones(2, 6)),
    "resnet": lambda: call(models.CifarResNet(depth=11), ones(2, 8, 8, 3)),
    "vgg": lambda: call(models.CifarVGG(depth=13), ones(2, 8, 8, 3)),
    "group_norm": lambda: group_norm(
        ones(2, 3, 8), ones(8), None, groups=4, epsilon=1e-5
    ),
    "crop": lambda: crop_and_flip(key, ones(2, 4, 4, 1), pad=1, flip=True),
    "normalize": lambda: normalize(ones(2, 4, 4, 1, dtype=jnp.uint8), [1.0], [2.0]),
    "labels": lambda: losses.cross_entropy(ones(4, 3), ones(4, dtype=int)),
    "tokens": lambda: losses.token_cross_entropy(
        ones(2, 5, 3), ones(2, 5, dtype=int), ones(2, 5, dtype=bool)
    ),
    "teacher": lambda: losses.Distillation().loss(ones(4, 3), ones(4, 3), ones(4)),
}
wrong = {
    "Dense": lambda: nn.Dense(8).init(key, [1.0]),
    "attention": lambda: call(nn.MultiHeadAttention(4), ones(2, 3, 8), ones(3, 5, 8)),
    "LSTM": lambda: call(nn.LSTMCell(8), (ones(2, 8), ones(3, 8)), ones(2, 6)),
    "GRU": lambda: call(nn.GRUCell(8), ones(3, 8), ones(2, 6)),
    "resnet": lambda: call(models.CifarResNet(depth=11), ones(8, 8, 3)),
    "group_norm": lambda: group_norm(
        ones(2, 3, 8), ones(4), None, groups=4, epsilon=1e-5
    ),
    "crop": lambda: crop_and_flip(key, ones(4, 4, 1), pad=1, flip=True),
    "labels": lambda: losses.cross_entropy(ones(4, 3), ones(4, 3)),
    "tokens": lambda: losses.token_cross_entropy(ones(2, 3), ones(2, dtype=int)),
    "teacher": lambda: losses.Distillation().loss(ones(4, 3), ones(4, 2)),
    "key": lambda: normalize(jax.random.split(key, (1, 1, 1, 1)), [1.0], [2.0]),
}
for name, run in right.items():
    run()
for name, run in wrong.items():
    try:
        run()
    except jaxtyping.TypeCheckError:
        continue
    raise AssertionError(f"{name} took it")
print("all", len(right), len(wrong))
"""


def test_shapes_of_public_signatures_are_checked():
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(SCRIPT)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.split() == ["all", "18", "11"]
