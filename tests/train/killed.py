"""Runs that are killed at random moments and resumed, in a separate process.

    python killed.py DIRECTORY SEED COUNT

trains once without a stop, then COUNT times with a SIGKILL at a random moment, and then
to the end. A moment is a step, or an operation on a file of the run, in the
background too: opened for writing, renamed, removed, a folder made. Prints as JSON the
final weights of each run.

Every run is a fork of this process, which imports everything and starts no backend.
"""

import hashlib
import json
import os
import pathlib
import random
import signal
import sys
import threading
import traceback
import warnings

import jax
import numpy as np
from flax import linen as nn

import mslice_jax as ms
from mslice_jax import data
from mslice_jax.schedules import make_schedule
from mslice_jax.train import (
    Checkpoints,
    MetricsFile,
    TrainState,
    Watcher,
    make_evaluate,
    make_train_step,
    sgd,
    train,
)


class Network(nn.Module):
    """A hidden layer with a batch norm, whose statistics are saved too."""

    @nn.compact
    def __call__(self, x, *, train: bool = False):
        x = nn.Dense(8)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        return nn.Dense(3)(x)


CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir"}


class Moments(Watcher):
    """Counts the moments, and kills the process at number `last`."""

    def __init__(self, directory: pathlib.Path, last: int | None):
        self.directory, self.last, self.count = f"{directory}/", last, 0
        self._lock = threading.Lock()
        sys.addaudithook(self._heard)

    def stepped(self, step, losses, examples_per_second):
        self._happened(f"step {step}")

    def _heard(self, event, args):
        writing = event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR)
        if (writing or event in CHANGES) and str(args[0]).startswith(self.directory):
            self._happened(f"{event} {str(args[0])[len(self.directory) :]}")

    def _happened(self, what):
        with self._lock:
            if self.count == self.last:
                pathlib.Path(self.directory[:-1] + ".moment").write_text(what)
                os.kill(os.getpid(), signal.SIGKILL)
            self.count += 1


def run(directory: pathlib.Path, last: int | None) -> None:
    """Trains, and writes the final weights next to the directory."""
    random = np.random.default_rng(0)
    x = random.normal(size=(32, 5)).astype(np.float32)
    y = random.integers(0, 3, 32).astype(np.int32)
    model = Network()
    variables = model.init(jax.random.key(1), x[:8])
    net = ms.upgrade(model, variables, x[:8], rates=(0.5, 1.0), norm="switchable")
    optimizer = sgd(0.1)
    watcher = Moments(directory, last)
    with Checkpoints(directory / "checkpoints") as checkpoints:
        outcome = train(
            TrainState.create(net, optimizer, key=jax.random.key(0)),
            train_step=make_train_step(optimizer),
            batches=lambda step: data.train_batches(x, y, 8, seed=0, start=step),
            schedule=make_schedule("random", net.rates, seed=1),
            evaluate=make_evaluate(x, y),
            epochs=4,
            steps_per_epoch=4,
            checkpoints=checkpoints,
            metrics=MetricsFile(directory / "metrics.jsonl"),
            log_every=1,
            watcher=watcher,
        )
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves((outcome.state.net, outcome.state.opt_state)):
        digest.update(np.asarray(leaf).tobytes())
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    result = {
        "weights": digest.hexdigest(),
        "accuracy": {str(rate): value for rate, value in outcome.accuracy.items()},
        "steps": [json.loads(line)["step"] for line in lines],
        "moments": watcher.count,
    }
    pathlib.Path(f"{directory}.json").write_text(json.dumps(result))


def in_a_fork(directory: pathlib.Path, last: int | None) -> int:
    """Runs in a child; returns the signal that ended it, or 0."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX warns of forks; no backend runs yet
        child = os.fork()
    if child == 0:
        try:
            run(directory, last)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def main(directory: pathlib.Path, seed: int, count: int) -> None:
    def result(name: str) -> dict:
        return json.loads((directory / f"{name}.json").read_text())

    assert in_a_fork(directory / "whole", None) == 0
    whole = result("whole")
    killed = []
    # Threads vary the number a little; the last moments come after all is saved.
    moments = range(whole["moments"] - 5)
    for moment in random.Random(seed).sample(moments, count):
        name = f"killed-{moment}"
        ended = in_a_fork(directory / name, moment)
        again = in_a_fork(directory / name, None)
        moment_file = directory / f"{name}.moment"
        what = moment_file.read_text() if moment_file.exists() else ""
        killed.append({"signal": ended, "again": again, "at": what, **result(name)})
    print(json.dumps({"whole": whole, "killed": killed}))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
