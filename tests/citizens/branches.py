"""Networks with parallel branches: inception, squeeze, grouped convolution."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from tests.citizens.citizen import (
    Citizen,
    Tree,
    beside,
    everything,
    kernel,
    lead,
    part_of,
    random_inputs,
    vectors,
    within,
)


class Inception(nn.Module):
    """1x1, 3x3 and depthwise branches, concatenated; group norm, flatten, dense."""

    width: int = 16
    groups: int = 16

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = self.width
        x = nn.relu(nn.Conv(width, (3, 3), name="stem")(x))
        deep = nn.Conv(2 * width, (3, 3), feature_group_count=width, name="depthwise")(
            x
        )
        branches = [
            nn.Conv(width, (1, 1), name="one")(x),
            nn.Conv(width, (3, 3), name="three")(x),
            deep,
        ]
        x = jnp.concatenate(branches, axis=-1)
        x = nn.GroupNorm(num_groups=self.groups, name="norm")(x)
        x = nn.avg_pool(nn.relu(x), (4, 4), (4, 4))
        return nn.Dense(10, name="head")(x.reshape(x.shape[0], -1))


def narrow_inception(variables: Tree, rate: float) -> Tree:
    """64 channels are 16 + 16 + 32; the flattened axis is 2 x 2 positions by 64."""
    params = variables["params"]
    width, double = lead(16, rate), lead(32, rate)
    joined = beside((16, width), (16, width), (32, double))
    flat = within(everything(4), 64, joined)
    return {
        "params": {
            "stem": kernel(params["stem"], everything(3), width),
            "one": kernel(params["one"], width, width),
            "three": kernel(params["three"], width, width),
            # One input channel for each group, two outputs: (3, 3, 1, 16 * 2).
            "depthwise": kernel(params["depthwise"], everything(1), double),
            "norm": vectors(params["norm"], joined),
            "head": kernel(params["head"], flat, everything(10)),
        }
    }


def inception() -> Citizen:
    """Parallel branches, depthwise convolution, group norm across the branches."""
    return Citizen(
        name="inception",
        model=Inception(),
        inputs=(random_inputs(2, 8, 8, 3),),
        by_hand=lambda rate: Inception(part_of(16, rate), part_of(16, rate)),
        narrow_by_hand=narrow_inception,
    )


class Squeeze(nn.Module):
    """A fire block of SqueezeNet, squeeze-and-excite, mean pool over positions."""

    width: int = 8

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = self.width
        x = nn.relu(nn.Conv(width, (3, 3), name="squeeze")(x))
        expand = [
            nn.Conv(2 * width, (1, 1), name="one")(x),
            nn.Conv(2 * width, (3, 3), name="three")(x),
        ]
        x = nn.relu(jnp.concatenate(expand, axis=-1))
        gate = nn.relu(nn.Dense(width, name="shrink")(x.mean((1, 2))))
        gate = nn.sigmoid(nn.Dense(4 * width, name="excite")(gate))
        x = x * gate[:, None, None, :]
        return nn.Conv(10, (1, 1), name="head")(x).mean((1, 2))


def narrow_squeeze(variables: Tree, rate: float) -> Tree:
    """The gate multiplies the concatenated branches, so it has their units."""
    params = variables["params"]
    width, double = lead(8, rate), lead(16, rate)
    joined = beside((16, double), (16, double))
    return {
        "params": {
            "squeeze": kernel(params["squeeze"], everything(3), width),
            "one": kernel(params["one"], width, double),
            "three": kernel(params["three"], width, double),
            "shrink": kernel(params["shrink"], joined, width),
            "excite": kernel(params["excite"], width, joined),
            "head": kernel(params["head"], joined, everything(10)),
        }
    }


def squeeze() -> Citizen:
    """Squeeze, expand, excite and a mean over positions."""
    return Citizen(
        name="squeeze",
        model=Squeeze(),
        inputs=(random_inputs(2, 8, 8, 3),),
        by_hand=lambda rate: Squeeze(part_of(8, rate)),
        narrow_by_hand=narrow_squeeze,
    )


class Grouped(nn.Module):
    """Two grouped convolutions in a row; whole groups narrow."""

    groups: int = 4

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        groups = self.groups
        x = nn.relu(nn.Conv(4 * groups, (3, 3), name="stem")(x))
        for name, size in {"wide": 8, "slim": 2}.items():
            conv = nn.Conv(size * groups, (3, 3), feature_group_count=groups, name=name)
            x = nn.relu(conv(x))
        return nn.Dense(10, name="head")(x.mean((1, 2)))


def narrow_grouped(variables: Tree, rate: float) -> Tree:
    """Four groups of 4, 8 and 2 channels; channels inside a group are fixed."""
    params = variables["params"]
    groups = lead(4, rate)
    stem = within(groups, 4, everything(4))
    wide = within(groups, 8, everything(8))
    slim = within(groups, 2, everything(2))
    return {
        "params": {
            "stem": kernel(params["stem"], everything(3), stem),
            "wide": kernel(params["wide"], everything(4), wide),
            "slim": kernel(params["slim"], everything(8), slim),
            "head": kernel(params["head"], slim, everything(10)),
        }
    }


def grouped() -> Citizen:
    """Grouped convolutions."""
    return Citizen(
        name="grouped_convolution",
        model=Grouped(),
        inputs=(random_inputs(2, 8, 8, 3),),
        by_hand=lambda rate: Grouped(part_of(4, rate)),
        narrow_by_hand=narrow_grouped,
    )
