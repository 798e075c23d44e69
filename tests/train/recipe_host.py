"""One of several processes of `test_hosts`: a recipe with --distributed.

python tests/train/recipe_host.py PORT NUMBER COUNT STOP FLAGS...

STOP is the step after which process 1 gets SIGTERM, 0 for none. Exits as recipes do.
"""

import functools
import os
import signal
import sys
import time

import jax

from experiments import recipe
from experiments.screen import Bar
from tests.test_recipes import TINY


class Stopped(Bar):
    """Sends the signal, and waits until JAX notices it."""

    def stepped(self, step, losses, examples_per_second):
        super().stepped(step, losses, examples_per_second)
        if step == STOP and jax.process_index() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)


if __name__ == "__main__":
    PORT, NUMBER, COUNT, STOP = map(int, sys.argv[1:5])
    # The environment of a cluster.
    jax.distributed.initialize = functools.partial(
        jax.distributed.initialize, f"localhost:{PORT}", COUNT, NUMBER
    )
    if STOP:
        recipe.Bar = Stopped
    sys.exit(recipe.main(TINY, ["--distributed", *sys.argv[5:]]))
