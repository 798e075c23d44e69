"""Is the model that was given the one whose network was saved?

Another function of the same shapes loads without an error, and would answer wrongly.
The programs in the file tell: both get the weights and one made-up batch.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ..core.call import Call
from ..core.errors import RateError
from ..sliceable import Sliceable
from ..storage import Programs, StorageError
from ..storage.plain import call_from_json
from ..storage.saving import programs_of
from .independence import apart, tolerance_of
from .saved import digest

_ROWS = 2
_FEW_BITS = re.compile(r"[x<](b?f16|f8E)")  # types in StableHLO: tensor<2xbf16>
# Both run once, so LLVM need not optimize them; without, it takes a third of the time.
_QUICK = {"xla_backend_optimization_level": 0}


class SameModel:
    """Holds a model to the programs of a file, again whenever the file is another.

    Args:
      path: the checkpoint.
      rates: at which the network is served; those without a program are passed over.
      say: is told in one line why a model cannot be compared.
    """

    def __init__(
        self, path: Path, rates: Sequence[Any], say: Callable[[str], None]
    ) -> None:
        self._path, self._rates, self._say = path, tuple(rates), say
        self._seen: Any = None

    def check(self, net: Sliceable) -> None:
        """Compares what the model gives with what the programs give.

        Nothing runs if the programs are those of the last check.

        Args:
          net: loaded from the file with the model.

        Raises:
          ValueError: if an output differs by more than rounding does: by a thousandth
            of its largest number, or by three hundredths where something less than
            single precision takes part, or on an accelerator.
        """
        try:
            programs = programs_of(self._path, jax.tree.leaves(net.variables))
            arrays = _made_up(programs)
        except (StorageError, _NotMade) as error:
            self._say(f"The model is not compared with the file: {error}")
            return
        kept = {rate: _key(programs, rate) for rate in self._rates}
        kept = {rate: key for rate, key in kept.items() if key is not _NONE}
        told = {key: digest(programs, key) for key in kept.values()}
        if told == self._seen:
            return
        call, _ = call_from_json(programs.saved.signature, programs.saved.arrays)
        for rate, key in kept.items():
            try:
                wanted = _answer(programs, rate, call, arrays)
            except Exception as error:  # such as programs for other platforms
                text = (str(error).strip() or type(error).__name__).splitlines()[0]
                self._say(
                    "The model is not compared with the file, whose programs do not "
                    f"run here: {text[:200]}"
                )
                return
            found = _answer(net, rate, call, arrays)
            few_bits = bool(_FEW_BITS.search(programs.saved.programs[key].text()))
            self._compare(rate, list(programs.outputs), wanted, found, few_bits)
        self._seen = told

    def _compare(
        self,
        rate: Any,
        names: Sequence[str],
        wanted: Sequence[np.ndarray],
        found: Sequence[np.ndarray],
        few_bits: bool,
    ) -> None:
        for name, there, here in zip(names, wanted, found, strict=True):
            allowed = 3e-2 if few_bits else tolerance_of(there.dtype)
            far = apart(there, here)
            if far > allowed:
                raise ValueError(
                    f"the model is another one than that of {self._path}: at rate "
                    f"{rate} its output {name!r} is {far:.2g} times the largest number "
                    f"away from what the program in the file gives (rounding: up to "
                    f"{allowed:g}). Give the model that upgrade was given, or save its "
                    "network again: mslice_jax.save."
                )


_NONE = object()


class _NotMade(Exception):
    """A call for which no inputs can be made up; says why."""


def _key(programs: Programs, rate: Any) -> Any:
    """Under which key the file has the program of a rate; `_NONE` if it has none."""
    try:
        program = programs._program(rate)
    except RateError:
        return _NONE
    each = programs.saved.programs.items()
    return next(key for key, value in each if value is program)


def _made_up(programs: Programs) -> list[Any]:
    """Inputs of the saved call; a batch of free size has two rows."""
    rng = np.random.default_rng(0)
    free: dict[str, int] = {}  # another size for each
    found = []
    for x in programs.saved.arrays:
        shape = []
        for n in x.shape:
            if not isinstance(n, int) and not str(n).isidentifier():
                raise _NotMade(f"an input has an axis of size {n}.")
            known = isinstance(n, int)
            shape.append(n if known else free.setdefault(str(n), _ROWS + len(free)))
        if jax.numpy.issubdtype(x.dtype, jax.dtypes.extended):
            key = jax.random.key(0)
            if x.dtype != key.dtype:
                raise _NotMade(f"an input is of {x.dtype}.")
            found.append(jax.random.split(key, tuple(shape)) if shape else key)
        elif jax.numpy.issubdtype(x.dtype, np.inexact):
            found.append(rng.normal(size=shape).astype(x.dtype))
        else:
            # Nobody says how many classes there are, but there are two at least.
            found.append(rng.integers(0, 2, size=shape).astype(x.dtype))
    return found


def _answer(net: Any, rate: Any, call: Call, arrays: Sequence[Any]) -> list[np.ndarray]:
    """The outputs of a network, compiled quickly."""

    def run(net: Any, arrays: Sequence[Any]) -> list[Any]:
        args, kwargs = call.join(arrays)
        return jax.tree.leaves(net(rate, *args, **kwargs))

    quick = _QUICK if jax.default_backend() == "cpu" else None
    return [np.asarray(x) for x in jax.jit(run, compiler_options=quick)(net, arrays)]
