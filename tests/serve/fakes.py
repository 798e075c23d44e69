"""An executor without a network, and a clock that is set by hand."""

import threading

import numpy as np

from mslice_jax.serve.rows import Rows, check
from mslice_jax.serve.signature import Signature, Tensor

F32, I32, BOOL = np.dtype("float32"), np.dtype("int32"), np.dtype("bool")
X = Tensor("x", F32, (-1, 2))
Y = Tensor("y", F32, (-1, 2))


class Clock:
    """Seconds."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class FakeExecutor:
    """Gives x times the rate times `scale`, and takes `took` seconds of its clock.

    While `gate` is clear a batch does not end.
    """

    rates = (0.5, 1.0)
    batch_sizes = (1, 2, 4)
    lengths = (None,)
    inputs, outputs = (X,), (Y,)
    compilations = narrow_bytes = 0

    def __init__(self, clock=None, took=0.01):
        self.clock, self.took, self.scale = clock, took, 1.0
        self.ran, self.gate, self.begun = [], threading.Event(), threading.Event()
        self.gate.set()

    def check(self, request) -> Rows:
        signature = Signature(
            None, (X,), (Y,), self.batch_sizes, (None,), frozenset(), None
        )
        return check(signature, request, ["x"])

    def run(self, rate, requests):
        self.ran.append((rate, [each.rows for each in requests]))
        scale = self.scale
        self.begun.set()
        assert self.gate.wait(60)
        if self.clock is not None:
            self.clock.now += self.took
        answers = [{"y": (each.arrays[0] * rate * scale)} for each in requests]
        return answers, self.took

    def swap(self, scale):
        if scale is None:
            raise ValueError("the new weights do not fit\nthose that are served")
        self.scale = scale


def x_of(*rows):
    return np.array([[row, -row] for row in rows], np.float32)
