"""From the command line to a server that is ready: network, programs, table, policy.

Whatever does not fit is an error of one line before the first request is taken.
"""

import argparse
import contextlib
import dataclasses
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..storage import Programs, load
from .baselines import SlackFit, Window
from .elastic import Elastic, LatencyFirst
from .engine import Engine
from .executor import Executor
from .latency import LatencyTable, TableError
from .policy import Policy, PolicyError
from .signature import Lengths
from .tensors import datatype


@dataclasses.dataclass(frozen=True)
class Network:
    """What is served, and where it came from.

    Attributes:
      net: of `upgrade` or `load`.
      accuracy: of each rate, as far as it is known.
      again: reads the checkpoint again; None where there is none.
      path: of the checkpoint.
      modelled: whether it was loaded with its model.
    """

    net: Any
    accuracy: Mapping[float, float]
    again: Callable[[], Any] | None = None
    path: Path | None = None
    modelled: bool = False


def network(flags: argparse.Namespace) -> Network:
    """The network that is served.

    Raises:
      ValueError, TypeError, OSError: if there is none, or the model is another one.
    """
    if flags.demo:
        for name in ("model", "model_from", "accuracy"):
            if getattr(flags, name) is not None:
                option = "--" + name.replace("_", "-")
                raise ValueError(f"{option} goes with --checkpoint, not with --demo.")
        from .demo import trained

        net, accuracy = trained()
        return Network(net, accuracy)
    path = _path(flags.checkpoint)
    if not path.exists():
        raise ValueError(f"--checkpoint {path}: there is nothing.")
    if not path.is_dir() and not path.is_file():  # a device, which may never end
        raise ValueError(f"--checkpoint {path}: it is neither a file nor a folder.")
    if path.is_dir() and not (path / "network.mslice").is_file():
        raise ValueError(
            f"--checkpoint {path}: the folder has no network.mslice, which a recipe "
            "writes at its end, and mslice_jax.save writes."
        )
    accuracy = _accuracy(flags.accuracy, path)
    model = _model(flags, path)

    def again() -> Any:
        return load(path, model)

    net = again()
    unknown = sorted({*(flags.rates or net.rates)} - {*accuracy})
    if flags.accuracy is not None and unknown:
        raise ValueError(
            f"--accuracy {flags.accuracy}: no accuracy of the rates {unknown}, only of "
            f"{sorted(accuracy)}."
        )
    return Network(net, accuracy, again, path, model is not None)


def executor(flags: argparse.Namespace, net: Any) -> Executor:
    """The executor, its options checked; nothing is compiled.

    Raises:
      ValueError, TypeError: for a rate that was not declared, a call that cannot be
        served in batches, numbers that the protocol does not have.
    """
    names = ("logits",) if flags.demo else None
    lengths = None
    if flags.lengths is not None:
        if isinstance(net, Programs) and not _has_free_length(net):
            raise ValueError(
                "--lengths: the programs of the file have inputs of one length. Give "
                "the model too, by --model or --model-from."
            )
        lengths = Lengths(flags.lengths, mask=flags.mask, count=flags.count)
    elif flags.mask is not None or flags.count is not None:
        raise ValueError("--mask and --count go with --lengths.")
    memory = flags.memory_mb
    found = Executor(
        net,
        rates=flags.rates,
        batch_sizes=flags.batches,
        lengths=lengths,
        call=flags.call,
        input_names=flags.input_names,
        output_names=flags.output_names or names,
        memory_bytes=None if memory is None else int(memory * 2**20),
        finite=flags.finite,
    )
    for tensor in found.inputs + found.outputs:
        datatype(tensor)
    return found


def _has_free_length(net: Programs) -> bool:
    inner = [n for x in net.inputs.values() for n in x.shape[1:]]
    return not all(isinstance(n, int) for n in inner)


def table(flags: argparse.Namespace, ready: Executor) -> LatencyTable:
    """The latency table: read, or measured.

    Raises:
      TableError, OSError: if the file is no table, or one of other programs.
    """
    if flags.table is None:
        found = ready.measure(flags.repeats)
        if flags.write_table is not None:
            found.write(_path(flags.write_table))
        return found
    found = LatencyTable.read(_path(flags.table))
    for what, there, here in (
        ("rates", found.rates, tuple(sorted(ready.rates))),
        ("batches", found.batches, ready.batch_sizes),
        ("lengths", found.lengths, ready.lengths),
    ):
        if there != here:
            raise TableError(
                f"--table {flags.table}: expected the {what} {list(here)}, got "
                f"{list(there)}. Measure it with these options: --write-table."
            )
    for what, here in ready.about.items():
        if (there := found.about.get(what, here)) != here:
            raise TableError(
                f"--table {flags.table} was measured with another network, or "
                f"elsewhere: its {what} are {there}, here {here}. Measure it again: "
                "--write-table."
            )
    return found


def policy(flags: argparse.Namespace) -> Policy:
    """The policy of that name."""
    slo_s = flags.slo_ms / 1e3
    kinds: dict[str, Callable[[], Policy]] = {
        "elastic": lambda: Elastic(slo_s=slo_s),
        "latency-first": lambda: LatencyFirst(slo_s=slo_s),
        "window": lambda: Window(slo_s=slo_s),
        "slackfit": SlackFit,
    }
    return kinds[flags.policy]()


def engine(
    flags: argparse.Namespace, ready: Executor, measured: LatencyTable, **more: Any
) -> Engine:
    """The engine, not started yet.

    Raises:
      PolicyError: for a T that is shorter than the narrowest program takes.
    """
    slo_s = flags.slo_ms / 1e3
    margin_ms = flags.margin_ms
    margin_s = min(2e-3, slo_s / 20) if margin_ms is None else margin_ms / 1e3
    # Also of a policy that knows no T: nobody would ever be on time.
    Elastic(slo_s=slo_s).check(measured)
    least_s = min(
        measured.p99_ms(measured.rates[0], 1, length) / 1e3
        for length in measured.lengths
    )
    if least_s + margin_s > slo_s:
        raise PolicyError(
            f"T is {flags.slo_ms:g} ms, of which --margin-ms takes {1e3 * margin_s:g}, "
            f"and the narrowest program takes {1e3 * least_s:g} ms (p99). Allow more."
        )
    return Engine(
        ready,
        policy(flags),
        measured,
        slo_s=slo_s,
        margin_s=margin_s,
        most_waiting=flags.queue,
        **more,
    )


def check_writable(flags: argparse.Namespace) -> None:
    """Raises ValueError if --write-table cannot be written, before it is measured."""
    if flags.write_table is None:
        return
    path = _path(flags.write_table)
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise ValueError(
            f"--write-table {path}: expected a file in a folder that can be written."
        )


def _path(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # of a user that is not known
        raise ValueError(f"{text}: {error}") from error


def _model(flags: argparse.Namespace, path: Path) -> Any:
    """The model; None for the programs of the file."""
    if flags.model is not None:
        found = _attribute("--model", flags.model)
        if not isinstance(found, type):
            return found
        with _told("--model", flags.model):
            return found()
    if flags.model_from is None:
        return None
    make = _attribute("--model-from", flags.model_from)
    with _told("--model-from", flags.model_from):
        if (found := make(path)) is None:
            raise ValueError("it returned None, no model")
        return found


def _attribute(option: str, text: str) -> Any:
    """What MODULE:NAME names."""
    module, _, name = text.partition(":")
    if not module or not name:
        raise ValueError(f"{option} {text}: expected MODULE:NAME, such as nets:model.")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    with _told(option, text):
        found = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
        return found


@contextlib.contextmanager
def _told(option: str, text: str) -> Iterator[None]:
    """Whatever code of the user's raises, as an error that names the option."""
    try:
        yield
    except (Exception, SystemExit) as error:
        raise ValueError(f"{option} {text}: {type(error).__name__}: {error}") from error


def _accuracy(file: str | None, checkpoint: Path) -> dict[float, float]:
    """Accuracies by rate, from a file, or from the summary of a recipe if it is there.

    Raises:
      ValueError, OSError: if the file that was given has none.
    """
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    path = folder / "summary.json" if file is None else _path(file)
    if file is None and not path.is_file():
        return {}
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        told = told.get("rates", told)
        found = {
            float(rate): of["accuracy"] if isinstance(of, dict) else of
            for rate, of in told.items()
        }
        if not found or not all(0 <= each <= 1 for each in found.values()):
            raise ValueError("no accuracies from 0 to 1")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        if file is None:
            return {}  # of a recipe that has another quantity
        raise ValueError(f"--accuracy {file}: no accuracies, {error!r}.") from error
    return found
