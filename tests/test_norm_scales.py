"""The scales of norms over training: groups, panels, the file, the picture."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import mslice_jax as ms
from experiments.norm_scales import PICTURE, ScalesFile, draw, panels, read, scales


class Norms(nn.Module):
    """A group norm, a layer norm, and a norm of what never narrows."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.LayerNorm(name="of_inputs")(x)
        x = nn.Conv(12, (1, 1))(x)
        x = nn.BatchNorm(use_running_average=not train, name="norm10")(x)
        x = nn.LayerNorm(name="norm2")(nn.Dense(8)(x.mean(axis=(1, 2))))
        return nn.Dense(3)(x)


def network(**settings):
    x = jnp.ones((2, 4, 4, 3))
    variables = Norms().init(jax.random.key(0), x)
    return ms.upgrade(Norms(), variables, x, rates=(0.5, 1.0), **settings)


def with_scales(net, **values):
    params = dict(net.variables["params"])
    for name, value in values.items():
        params[name] = {**params[name], "scale": jnp.asarray(value, jnp.float32)}
    return net.replace({**net.variables, "params": params})


def test_means_of_groups_by_hand():
    first = [1, -3, 2, 2, 0, 0, 5, -5, 1, 2, -4, 4]
    net = with_scales(network(norm="group", groups=4), norm10=first, norm2=[-1] * 8)
    # Four groups of three channels, and four of two; natural order.
    assert scales(net) == {
        "norm2": [1, 1, 1, 1],
        "norm10": [2, 0.66667, 3.6667, 3.3333],
    }


def test_the_file_has_a_line_for_each_epoch_and_rewinds(tmp_path):
    net = network(norm="group", groups=2)
    file = ScalesFile(tmp_path / "norm_scales.jsonl")
    for epoch, size in ((1, 1.0), (2, 3.0), (3, 4.0)):
        file.measure(with_scales(net, norm2=[size] * 4 + [2 * size] * 4))
        file.write(step=10 * epoch, epoch=epoch)
    file.rewind(20)
    file.write(step=30, epoch=3)
    found = read(tmp_path / "norm_scales.jsonl")
    assert {epoch: each["norm2"] for epoch, each in found.items()} == {
        1: [1, 2], 2: [3, 6], 3: [4, 8]
    }  # fmt: skip
    draw(tmp_path, "title")
    assert (tmp_path / PICTURE).read_bytes().startswith(b"\x89PNG")


def test_a_network_without_norms_leaves_no_file(tmp_path):
    model = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(2)])
    x = jnp.ones((2, 3))
    net = ms.upgrade(model, model.init(jax.random.key(0), x), x, rates=(0.5, 1.0))
    file = ScalesFile(tmp_path / "norm_scales.jsonl")
    file.measure(net)
    file.write(step=1, epoch=1)
    draw(tmp_path, "title")
    assert list(tmp_path.iterdir()) == []


def test_many_norms_are_averaged_with_their_neighbours():
    names = [f"n{i}" for i in range(5)]
    found = {
        epoch: {
            # The last one has another number of groups.
            name: [float(epoch * i), 1.0] + ([0.0] if name == "n4" else [])
            for i, name in enumerate(names)
        }
        for epoch in (1, 2)
    }
    assert [title for title, _, _ in panels(found)] == names
    few = panels(json.loads(json.dumps(found), object_hook=_numbers), at_most=3)
    assert [title for title, _, _ in few] == ["n0 to n1", "n2 to n3", "n4"]
    np.testing.assert_array_equal(few[0][2], [[0.5, 1], [1, 1]])
    np.testing.assert_array_equal(few[1][2], [[2.5, 1], [5, 1]])
    assert few[2][2].shape == (2, 3)


def _numbers(each):
    return {int(key) if key.isdigit() else key: value for key, value in each.items()}
