"""A network without its model, as an executor asks for one.

`mslice_jax.load(path)` gives `Programs`: what was exported for each rate, and the
weights. Here they get the parts of a `Sliceable` that an executor uses: the narrow
network of a rate, its weights as arguments, and the call that was saved.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from ..core.call import Call
from ..core.rates import SubNetwork
from ..core.run import resolve
from ..sliceable import Network, Sliceable, extract
from ..storage.plain import call_from_json, tree_from_json
from ..storage.programs import Programs


class _Function:
    """What is known of a function that is not here: the names of its arguments."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = list(names)

    def updates(self, call: Mapping[str, Any]) -> bool:
        """Programs that give back collections were saved with `mutable`."""
        return bool(call.get("mutable"))

    def positional(self, call: Mapping[str, Any]) -> list[str]:
        """The names that were saved."""
        del call
        return self._names


@dataclass(frozen=True, eq=False)
class _Definition:
    """The call that was saved, and what tells two files apart.

    Attributes:
      function: stands for the model.
      call, arrays: as `core.definition.Definition` has them.
      told: the signature, and a digest of every program.
    """

    function: Any
    call: Call
    arrays: Sequence[Any]
    told: tuple[Any, ...]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Definition) and self.told == other.told


@jax.tree_util.register_pytree_node_class
class SavedNetwork(Network):
    """`Programs` at all their widths, or at the one that was cut.

    Attributes:
      variables: a list of arrays.
      programs: the programs that are run, of types.
      part: which part of the network the weights are.
      definition: the call.
      narrow: whether the weights are those of the program of `part` alone.
    """

    def __init__(
        self,
        variables: Sequence[Any],
        programs: Programs,
        part: SubNetwork,
        definition: _Definition,
        narrow: bool = False,
    ) -> None:
        self.variables, self.programs = list(variables), programs
        self.part, self.definition, self.narrow = part, definition, narrow

    @classmethod
    def of(cls, programs: Programs) -> "SavedNetwork":
        """The network that an executor serves.

        Raises:
          ValueError: if the programs have a batch of fixed size.
        """
        saved = programs.saved
        if saved.batch is not None:
            raise ValueError(
                f"the programs of {saved.path} have a batch of fixed size "
                f"({saved.batch}), and requests come in batches of several sizes. Load "
                "the network with its model."
            )
        each = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in programs.variables]
        types = Programs(each, saved)
        call, arrays = call_from_json(saved.signature, saved.arrays)
        told = (
            saved.part,
            str(saved.signature),
            tuple(str(x) for x in saved.arrays),
            tuple((key, digest(types, key)) for key in saved.programs),
        )
        names = _arguments(call, saved.names)
        definition = _Definition(_Function(names), call, arrays, told)
        return cls(programs.variables, types, saved.part, definition)

    @property
    def rates(self) -> tuple[float, ...]:
        """The saved rates, ascending."""
        return self.programs.rates

    @property
    def rate(self) -> float | SubNetwork:
        """The rate of what was saved."""
        return self.programs.rate

    def part_at(self, rate: Any) -> SubNetwork:
        """The sub-network of a saved rate.

        Raises:
          RateError: for another one.
        """
        self.programs._program(_key(rate) if isinstance(rate, SubNetwork) else rate)
        if isinstance(rate, SubNetwork):
            return rate
        # The file knows the widths; here it is enough which program is narrower.
        return SubNetwork(float(rate), (("program", 1 + self.rates.index(rate)),))

    def cut(self, part: SubNetwork) -> "SavedNetwork":
        """The narrow network of a rate, with the weights that its program takes."""

        def cut(variables: Sequence[Any]) -> list[Any]:
            net = Programs(variables, self.programs.saved)
            return list(net._weights(net._program(_key(part))))

        if any(isinstance(x, jax.ShapeDtypeStruct) for x in self.variables):
            leaves = jax.eval_shape(cut, self.variables)
        else:
            leaves = cut(self.variables)
        return SavedNetwork(leaves, self.programs, part, self.definition, True)

    def replace(self, variables: Any) -> "SavedNetwork":
        """The same network with other weights of the same shapes."""
        return SavedNetwork(
            variables, self.programs, self.part, self.definition, self.narrow
        )

    def __call__(self, r: Any, /, *inputs: Any, **call: Any) -> Any:
        """Runs at a saved rate."""
        narrow = self if self.narrow else self.cut(self.part_at(r))
        split, arrays = Call.split(inputs, call)
        self.programs._check(split, arrays)
        program = self.programs._program(_key(narrow.part))
        each = iter(program.run(narrow.variables, arrays))
        return tree_from_json(program.output, lambda _: next(each))

    def tree_flatten(self) -> Any:
        """The arrays, and the static part, as JAX asks of a pytree."""
        static = self.programs, self.part, self.definition, self.narrow
        return self.variables, static

    @classmethod
    def tree_unflatten(cls, static: Any, variables: Any) -> "SavedNetwork":
        """The inverse of flattening."""
        return cls(variables, *static)

    def __repr__(self) -> str:
        return f"{self.programs!r} of {self.programs.saved.path}"


# In the text of a program: where in a source file an operation comes from.
_LOCATION = re.compile(r'^#loc.*\n| loc\((?:[^()"]|"[^"]*")*\)', re.MULTILINE)

Served = Sliceable | SavedNetwork
"""What an executor serves."""


def part_of(net: Served, rate: Any) -> SubNetwork:
    """The sub-network that a user asks for.

    Raises:
      RateError: for a rate that was not declared, or not saved.
    """
    if isinstance(net, SavedNetwork):
        return net.part_at(rate)
    return resolve(net.definition, rate, net.part)


def narrowed(net: Any, part: SubNetwork) -> Any:
    """The narrow network alone."""
    return net.cut(part) if isinstance(net, SavedNetwork) else extract(net, part)


def _key(part: SubNetwork) -> Any:
    return part if part.rate is None else part.rate


def _arguments(call: Call, names: Sequence[str]) -> list[str]:
    """The names of the arguments by position, from those of the arrays in them."""
    args, _ = call.join(names)
    found = []
    for i, arg in enumerate(args):
        inside = [x for x in jax.tree.leaves(arg) if x in names]
        found.append(inside[0].split("/")[0] if inside else f"input_{i}")
    return found


def digest(net: Programs, key: float | None) -> str:
    """Tells the program of a rate from others; None: that of all that was saved.

    Of its StableHLO, without places in somebody's source files.
    """
    program = net._program(net.saved.part if key is None else key)
    return hashlib.sha256(_LOCATION.sub("", program.text()).encode()).hexdigest()
