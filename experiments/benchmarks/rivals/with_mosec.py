"""The full width behind mosec, with its own dynamic batching.

    python -m experiments.benchmarks.rivals.with_mosec --address 127.0.0.1 --port 8000

mosec reads its command line by itself; what is ours comes in variables, RIVAL_WAIT_MS
and those of `program.from_environment`. Images come and logits go as bytes, which is
the quickest that it has.
"""

# The checks of this project do not install mosec.
# pyright: reportMissingImports=false

import os

import mosec
import numpy as np

from experiments.benchmarks.rivals.program import batch, from_environment


class Model(mosec.Worker):
    """One process, which runs the batches."""

    resp_mime_type = "application/octet-stream"

    def __init__(self) -> None:
        super().__init__()
        self.run = from_environment()

    def deserialize(self, data: bytes) -> bytes:
        """A body as it is; `forward` reads all of a batch at once."""
        return data

    def serialize(self, data: np.ndarray) -> bytes:
        """The logits of one request."""
        return data.tobytes()

    def forward(self, data: list[bytes] | bytes) -> list[np.ndarray] | np.ndarray:
        """A batch; without batching one body."""
        if isinstance(data, bytes):
            return self.run(batch([data]))[0]
        return list(self.run(batch(data)))


if __name__ == "__main__":
    server = mosec.Server()
    server.append_worker(
        Model,
        num=1,
        max_batch_size=int(os.environ["RIVAL_ROWS"]),
        max_wait_time=int(os.environ["RIVAL_WAIT_MS"]),
    )
    server.run()
