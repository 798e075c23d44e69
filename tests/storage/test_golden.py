"""Files of earlier versions load, with the model and without.

If a change of the format makes one of them unreadable, raise the version and say in
one line what to do; never rewrite a file. If a new JAX cannot read the programs of an
old file, `load` says so, and the second test may leave that version out.
"""

import numpy as np
import pytest

import mslice_jax as ms

from . import golden

FILES = sorted(golden.FOLDER.glob("format_*.mslice"))


def hidden():
    """Input and statistics of the norm, and the layers after it, in NumPy."""
    x, variables = golden.arrays()
    params = variables["params"]
    first, last, norm = params["Dense_0"], params["Dense_1"], params["BatchNorm_0"]
    first, last, norm = (
        {name: np.asarray(a, np.float64) for name, a in each.items()}
        for each in (first, last, norm)
    )
    h = x.astype(np.float64) @ first["kernel"] + first["bias"]
    mean, var = h.mean(0), h.var(0)
    return x, h, mean, var, norm, last


EXPORTS = [path for path in FILES if path.stem == "format_2"]


def test_there_is_a_file_for_each_version():
    assert [path.stem for path in FILES] == [
        f"format_{version}" for version in range(1, golden.VERSION + 1)
    ]


@pytest.mark.parametrize(
    "path", [p for p in FILES if p not in EXPORTS], ids=lambda path: path.stem
)
def test_the_whole_network(path):
    net = ms.load(path, model=golden.Net())
    made = golden.network()
    assert net.definition == made.definition
    x, variables = golden.arrays()
    order = net.definition.orders["Dense_0/kernel:1"]
    kernel = variables["params"]["Dense_0"]["kernel"]
    np.testing.assert_array_equal(
        net.variables["params"]["Dense_0"]["kernel"], kernel[:, order]
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_its_programs(path):
    alone = ms.load(path)
    order = golden.network().definition.orders["Dense_0/kernel:1"]
    for rate, width in ((0.25, 2), (0.5, 4), (1.0, 8)):
        kept = order[:width]
        x, h, mean, var, norm, last = hidden()
        h = (h - mean) / np.sqrt(var + 1e-5) * norm["scale"] + norm["bias"]
        y = np.maximum(h[:, kept], 0) @ last["kernel"][kept] + last["bias"]
        got = ms.slice_apply(alone, x, rate, train=False)
        np.testing.assert_allclose(got["logits"], y, rtol=1e-4, atol=1e-5)
