"""Making a network sliceable."""

import contextlib
import functools
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax

from .adapters import adapter_of
from .adapters.base import Adapter, Norms
from .core.call import Call, keywords
from .core.checks import check_keywords
from .core.counts import Asked
from .core.define import define
from .core.errors import PlanError, RateError
from .core.function import as_array
from .core.groups import UNREAD, Units
from .core.patterns import Patterns, as_patterns
from .core.rates import check_rates
from .core.settings import Settings
from .sliceable import Sliceable

_NONE: Any = object()  # in place of an argument that was not given


def upgrade(
    model: Any,
    variables: Any = _NONE,
    *inputs: Any,
    rates: Iterable[float],
    norm: str | None = None,
    # The widths that a rate gives.
    groups: int = 8,
    min_width: int = 1,
    multiple_of: int = 1,
    shards: int = 1,
    # Which axes narrow.
    include: Patterns | None = None,
    exclude: Patterns | None = None,
    inner: Patterns | None = None,
    # Numbers that are made of sizes.
    follow: Patterns | None = None,
    stay: Patterns | None = None,
    # What is an error.
    check: bool = True,
    strict: bool = False,
    # The call.
    call: Mapping[str, Any] | None = None,
    **call_kwargs: Any,
) -> Sliceable:
    """Makes a network sliceable: traces it, finds which axes narrow together.

    ``upgrade(model, variables, x, rates=(0.25, 0.5, 0.75, 1.0))`` is what most networks
    need. The other options stand in groups: the norms, the widths that a rate gives,
    which axes narrow, numbers that are made of sizes, what is an error, the call.

    Args:
      model: a Linen module, an NNX model, or a function fn(variables, *inputs,
        **call_kwargs).
      variables: its variables; the weights are kept. An NNX model holds its own, so the
        call is `upgrade(model, *inputs, rates=...)`; the model is not changed.
      *inputs: example inputs, arrays or `jax.ShapeDtypeStruct`s.
      rates: the slice rates in (0, 1] that the network will run at.

      norm: *Norms.* What becomes of the batch norms of a Flax model: 'group',
        'switchable' or 'shared', see `mslice_jax.adapters.norms`. By default 'shared'
        where their running statistics are trained, to be measured for each rate by
        `calibrate`, and 'group' where they are fresh, or no values are given; the
        report says which, and why.

      groups: *Widths.* How many units an axis has where the network itself sets none,
        and how many groups a group norm has that replaces a batch norm.
      min_width: how many entries an axis keeps at least.
      multiple_of: widths are rounded to a multiple of this many entries (8, 64 or 128
        suit the hardware); rate 1 keeps everything. Axes of whole heads or groups of
        more entries keep as many of these as make up a multiple.
      shards: how many devices an axis that narrows may be sharded over. Axes that it
        divides are partitioned into so many equal parts, of which each keeps its
        leading indices, so that slicing and putting back move nothing between devices.

      include: *Axes.* Path patterns (see `mslice_jax.core.patterns`) of the parameters,
        or their axes, that may narrow; all that is tied to another parameter stays
        whole.
      exclude: path patterns of parameters, or their axes, that keep their size.
      inner: path patterns of parameters of whose split axes the innermost factor
        narrows instead of the outermost: the head size instead of the heads, the
        channels of every group instead of the groups. Means follow; of another number
        that was made of the size, such as 1 / sqrt(head size), see `follow`.

      follow: *Numbers.* Patterns of lines as the report writes them ("net.py:12",
        "net.py:*"): numbers there that are a power of the size of an axis that narrows
        are made of the narrow size, as means are without being asked.
      stay: the same of numbers that stay what they are.

      check: *Errors.* Whether the function is traced with narrow variables, too, where
        it can be (functions that take their sizes from their arrays). Its own program
        has to be the narrow one, and decides which numbers follow.
      strict: whether rates that some axis cannot honour exactly, primitives without a
        rule, and numbers of which nobody knows whether they follow, are errors instead
        of lines in the report, or a `NumberWarning`.

      call: *The call.* What else it needs, by keyword. For a Linen module `rngs`,
        `mutable` and `method` go to `Module.apply`; an NNX model understands them too,
        and `train`, see `mslice_jax.adapters.nnx.function`.
      **call_kwargs: the same, written out: `train=False` is `call={"train": False}`. A
        keyword of the model that is also one of these arguments (`rates`, `groups`,
        `norm`, `strict`, ...) is given in `call`.

    Returns:
      The network in sliceable form.

    Raises:
      RateError: for rates that cannot be used.
      PlanError: if nothing can narrow, a pattern matches nothing, the function's own
        program at a rate is not the narrow one, or under `strict`.
      ValueError: if the variables do not fit the model.
      TypeError: for a keyword that neither this function nor the model takes.

    Example:
      >>> import jax.numpy as jnp, mslice_jax as ms
      >>> def mlp(p, x):
      ...     return jnp.tanh(x @ p["w1"]) @ p["w2"]
      >>> p = {"w1": jnp.ones((3, 16)), "w2": jnp.ones((16, 2))}
      >>> net = ms.upgrade(mlp, p, jnp.ones((1, 3)), rates=(0.25, 0.5, 1.0))
      >>> net
      Sliceable(80 numbers at rate 1, rates=(0.25, 0.5, 1.0), 1 width groups)
      >>> net.plan.widths(0.25)  # the group is named by an axis that it runs through
      {'w1:1': 4}
    """
    kwargs = keywords(call, call_kwargs)
    checked = check_rates(rates)
    counts = {
        "groups": groups,
        "min_width": min_width,
        "multiple_of": multiple_of,
        "shards": shards,
    }
    for argument, count in counts.items():
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"{argument} is a positive integer; got {count!r}.")
    settings = Settings(
        checked,
        Units(groups, multiple_of, min_width, shards),
        as_patterns(include, "include"),
        as_patterns(exclude, "exclude"),
        as_patterns(inner, "inner"),
        Asked(as_patterns(follow, "follow"), as_patterns(stay, "stay")),
        strict,
        check,
    )
    adapter = adapter_of(model)
    if adapter.holds_variables:
        inputs = inputs if variables is _NONE else (variables, *inputs)
        variables = {}
    adapter.check(model, inputs)
    if variables is _NONE:
        raise TypeError("upgrade expects the variables of the model, as 2nd argument.")
    split, arrays = Call.split(inputs, kwargs)
    variables = jax.tree.map(as_array, _thawed(variables))
    with _explained(adapter, model, variables, split, arrays):
        function, sliceable = adapter.adapt(
            model, variables, split, arrays, Norms(norm, groups, checked)
        )
        definition = define(function, sliceable, split, arrays, settings)
    if any(fixed.reason.text == UNREAD for fixed in definition.plan.fixed):
        _check_fit(adapter, model, variables, split, arrays)
    return Sliceable(sliceable, definition)


_OPTIONS = tuple(
    name
    for name, parameter in inspect.signature(upgrade).parameters.items()
    if parameter.kind is inspect.Parameter.KEYWORD_ONLY
)


@contextlib.contextmanager
def _explained(
    adapter: Adapter,
    model: Any,
    variables: Any,
    call: Call,
    arrays: Sequence[Any],
) -> Iterator[None]:
    """Turns an error of the trace into one that lists what does not fit."""
    try:
        yield
    except (PlanError, RateError):
        raise
    except Exception as error:
        called = functools.partial(adapter.called, model)
        check_keywords(called, call, arrays, error, _OPTIONS)
        _check_fit(adapter, model, variables, call, arrays, error)
        raise


def _check_fit(
    adapter: Adapter,
    model: Any,
    variables: Any,
    call: Call,
    arrays: Sequence[Any],
    cause: Exception | None = None,
) -> None:
    """Raises ValueError if the variables are not those that the model initialises."""
    wrong = adapter.misfits(model, variables, call, arrays)
    if wrong:
        raise ValueError(
            "the variables do not fit the model:\n"
            + "\n".join(wrong[:8])
            + "\nPass what `module.init` of this model returned."
        ) from cause


def _is_frozen(x: Any) -> bool:
    core = sys.modules.get("flax.core")  # without Flax there is no such dict
    return core is not None and isinstance(x, core.FrozenDict)


def _thawed(tree: Any) -> Any:
    """The tree with dicts in place of FrozenDicts, at any depth."""
    return jax.tree.map(
        lambda x: _thawed(dict(x)) if _is_frozen(x) else x, tree, is_leaf=_is_frozen
    )
