"""The full width behind LitServe, with its own dynamic batching.

    python -m experiments.benchmarks.rivals.with_litserve

Its settings come in variables: RIVAL_PORT, RIVAL_WAIT_MS and those of
`program.from_environment`. Images come and logits go as bytes, and answers through
ZeroMQ, which is the quickest that it has.
"""

# The checks of this project do not install LitServe.
# pyright: reportMissingImports=false

import os
from typing import Annotated

import litserve
import numpy as np
from fastapi import Body, Response

from experiments.benchmarks.rivals.program import batch, from_environment

_BYTES = "application/octet-stream"


class Model(litserve.LitAPI):
    """What its one worker runs."""

    def setup(self, device: str) -> None:
        """Compiles, in the worker."""
        del device
        self.run = from_environment()

    def decode_request(self, request: Annotated[bytes, Body(media_type=_BYTES)]):
        """A body as it is."""
        return request

    def batch(self, inputs: list[bytes]) -> np.ndarray:
        """Bodies to images."""
        return batch(inputs)

    def predict(self, x: np.ndarray | bytes) -> np.ndarray:
        """Images to logits; without batching one body."""
        return self.run(batch([x]))[0] if isinstance(x, bytes) else self.run(x)

    def unbatch(self, output: np.ndarray) -> list[np.ndarray]:
        """Logits to those of each request."""
        return list(output)

    def encode_response(self, output: np.ndarray) -> Response:
        """The logits of one request."""
        return Response(output.tobytes(), media_type=_BYTES)


if __name__ == "__main__":
    api = Model(
        max_batch_size=int(os.environ["RIVAL_ROWS"]),
        batch_timeout=float(os.environ["RIVAL_WAIT_MS"]) / 1e3,
    )
    server = litserve.LitServer(
        api, accelerator="cpu", devices=1, workers_per_device=1, fast_queue=True
    )
    server.run(
        host="127.0.0.1",
        port=int(os.environ["RIVAL_PORT"]),
        num_api_servers=1,
        log_level="warning",
        generate_client_file=False,
    )
