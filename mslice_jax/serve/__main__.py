"""The server: python -m mslice_jax.serve --checkpoint PATH, or --demo."""

import argparse
import gc
import logging
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any

import jax

from ..cpu import memory
from .options import options

_CLEAR = (
    ValueError,
    TypeError,
    OSError,
    ImportError,
    # Of JAX for what does not compile or fit on the device; of Python for a file that
    # nests without end.
    jax.errors.JaxRuntimeError,
    MemoryError,
    OverflowError,
    RecursionError,
)


def main(args: Sequence[str] | None = None) -> int:
    """The command; returns the exit code: 0, or 2 for what does not fit."""
    flags = options(args)
    try:
        return _checked(flags)
    except _CLEAR as error:
        text = " ".join(str(error).split())
        kind = type(error).__name__
        # Those that are not ours begin with what they are.
        ours = isinstance(error, ValueError | TypeError | OSError | ImportError)
        _say(f"error: {text}" if ours and text else f"error: {kind}: {text[:500]}")
        return 2
    except KeyboardInterrupt:
        _say("Interrupted.")
        return 130


def _checked(flags: argparse.Namespace) -> int:
    try:
        import prometheus_client
        import starlette
        import uvicorn
    except ImportError as error:
        raise ImportError(
            f'the server needs {error.name}; run: pip install "mslice_jax[serve]"'
        ) from error
    del prometheus_client, starlette, uvicorn
    with _bound(flags.host, flags.port) as listening:  # before what takes minutes
        return _serve(flags, listening)


def _serve(flags: argparse.Namespace, listening: socket.socket) -> int:
    import uvicorn

    from . import starting
    from .app import App
    from .live import Live
    from .metrics import OUTCOMES, Metrics
    from .same_model import SameModel

    if flags.demo:
        _say("Training a network of digits ...")
    if flags.token is None and not _is_loopback(listening):
        _say(f"Anyone who reaches {flags.host} may ask: there is no --token.")
    starting.check_writable(flags)
    memory.keep_freed()
    source = starting.network(flags)
    executor = starting.executor(flags, source.net)
    same = None
    if source.path is not None and source.modelled:
        _say("Comparing the model with the file ...")
        same = SameModel(source.path, executor.rates, _say)
        same.check(source.net)
    executor.prepare(_Progress())
    _say("Measuring ..." if flags.table is None else "Reading the table ...")
    table = starting.table(flags, executor)
    metrics = Metrics(
        executor.rates, slo_s=flags.slo_ms / 1e3, accuracy=source.accuracy
    )
    engine = starting.engine(flags, executor, table, watcher=metrics)
    metrics.of(engine, executor)
    again = source.again

    one = threading.Lock()  # two sets of new weights at once may not fit

    def reload() -> None:
        assert again is not None
        try:
            with one:
                new = again()
                if same is not None:
                    same.check(new)
                engine.swap(new)
        except Exception:
            metrics.swapped("failed")
            raise
        metrics.swapped("done")

    about = {
        "name": flags.name,
        "rates": list(executor.rates),
        "slo_ms": flags.slo_ms,
        "policy": flags.policy,
    }
    app = App(
        engine=engine,
        executor=executor,
        metrics=metrics,
        live=Live(metrics, about),
        reload=None if again is None else reload,
        name=flags.name,
        token=flags.token,
        body_bytes=int(flags.body_mb * 2**20),
        held_bytes=int(flags.held_mb * 2**20),
    )
    del source  # the executor has the weights
    gc.collect()
    gc.freeze()  # programs and traces stay; nobody has to look through them again
    # A request should not wait 5 ms for the thread that plans or runs a batch.
    sys.setswitchinterval(5e-4)

    class Server(uvicorn.Server):
        """Drains at the first signal, and stops at the second."""

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            del sig, frame
            if engine.draining:
                # It would print the traces of tasks that are cancelled.
                logging.getLogger("uvicorn.error").disabled = True
                self.should_exit = self.force_exit = True
                return
            threading.Thread(target=self._drain, daemon=True).start()

        def _drain(self) -> None:
            left = engine.waiting
            _say(f"Stopping; {left} requests wait.")
            if not engine.drain(flags.drain_s):
                _say(f"error: {engine.waiting} requests are left unanswered.")
            self.should_exit = True

    config = uvicorn.Config(
        app.asgi(),
        log_level="warning",
        access_log=False,
        timeout_keep_alive=75,
        server_header=False,
        timeout_graceful_shutdown=5,
        ws="none",
    )
    server = Server(config)
    if again is not None and hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, lambda *_: _in_thread(reload))
    _listen(listening, flags.host, flags.port)
    engine.start()
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    _say(
        f"Ready: http://{shown}:{port}, model {flags.name!r}, rates "
        f"{', '.join(f'{rate:g}' for rate in executor.rates)}, T = {flags.slo_ms:g} ms."
    )
    server.run(sockets=[listening])
    count = {
        name: metrics.value("mslice_requests_total", outcome=name) for name in OUTCOMES
    }
    told = ", ".join(f"{n:.0f} {name}" for name, n in count.items() if n)
    _say(f"Stopped. Requests: {told or 'none'}.")
    return 0


def _bound(host: str, port: int) -> socket.socket:
    """A socket at the address.

    Raises:
      OSError: if it is in use, or none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = None
    try:
        found = socket.socket(family, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
    except (OSError, UnicodeError) as error:  # the latter of a name that is none
        if found is not None:
            found.close()
        raise _no_place(host, port, error) from error
    return found


def _listen(bound: socket.socket, host: str, port: int) -> None:
    """Raises OSError if another process began to listen there since it was bound."""
    try:
        bound.listen(2048)
    except OSError as error:
        raise _no_place(host, port, error) from error


def _no_place(host: str, port: int, error: Exception) -> OSError:
    why = getattr(error, "strerror", None) or error
    return OSError(
        f"cannot listen on port {port} of {host}: {why}. Choose another with --port "
        "and --host."
    )


def _is_loopback(bound: socket.socket) -> bool:
    address = str(bound.getsockname()[0])
    return address == "::1" or address.startswith("127.")


def _in_thread(reload: Any) -> None:
    def run() -> None:
        try:
            reload()
            _say("New weights.")
        except Exception as error:
            text = " ".join(str(error).split())
            _say(f"error: the old weights stay: {text}")

    threading.Thread(target=run, daemon=True).start()


class _Progress:
    """Tells how many programs are compiled, on a line of its own where it is seen."""

    def __call__(self, done: int, count: int) -> None:
        seen = sys.stderr.isatty()
        if seen or done in (0, count):
            end = "\n" if not seen or done == count else "\r"
            _say(f"Compiled {done} of {count} programs", end=end)


def _say(text: str, end: str = "\n") -> None:
    print(text, end=end, file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    logging.basicConfig(format="%(levelname)s: %(message)s")
    sys.exit(main())
