"""What narrows with what; what is fixed, and why."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .adapters.modules import ModuleFunction
from .adapters.norms import STRATEGIES
from .core.analysis import Analysis
from .core.call import Call, type_of
from .core.flops import elastic_share, flops
from .core.plan import WidthPlan
from .core.run import full_types
from .sliceable import Sliceable

_MEASURED = "with statistics that were measured for each"


@dataclass(frozen=True)
class Report:
    """The plan of a network, to print or, by `to_dict`, to compute with."""

    net: Sliceable

    @property
    def plan(self) -> WidthPlan:
        """The plan that it tells of."""
        return self.net.plan

    def to_dict(self) -> dict[str, Any]:
        """The whole report as plain data that JSON can hold.

        Returns:
          A dict with these keys.

          * ``rates``: the declared rates.
          * ``parameters``: by rate, how many numbers it reads of the parameters, as
            `mslice_jax.profile` counts them.
          * ``variables``: by rate, how many numbers all variables hold together:
            statistics, constants, and the norms of other rates among them.
          * ``contraction_flops``, also ``flops``: by rate, how many operations the
            contractions take (dense layers, convolutions, attention) in the call that
            `upgrade` saw; a multiplication with an addition is 2.
          * ``elastic``: the shares of parameters and FLOPs, in [0, 1], that some axis
            which narrows runs through.
          * ``groups``: for each group its size, its unit, how many entries of an array
            an index spans, its width at each rate (of its indices, which may be heads
            or groups of channels) and that in ``channels``, and the axes that narrow
            with it.
          * ``fixed``: each axis of a parameter that keeps its size, the reason, the
            primitive that asks for it (empty where the user or the call does), and the
            user's line.
          * ``products``: the axes of parameters of which several factors narrow, each
            by itself, and what they are made of.
          * ``rounded``: where a group cannot keep exactly its rate.
          * ``not_sharded``: groups that ``shards`` of `upgrade` does not split: slicing
            them moves data between devices.
          * ``numbers``: each number of the program that is a power of the size of an
            axis that narrows, whether it follows the width, why, and the user's line;
            ``open`` is one that stays though it matters where it stands.
          * ``own_program``: whether the function itself traces to the same program at
            narrow shapes, or why that could not be compared.
          * ``norms``: None without batch norms. Else how many there are (``count``),
            their ``strategy`` and ``why`` it was chosen, and in ``left`` the paths of
            other modules that keep a mean and a variance, which no strategy changes.
        """
        plan, definition = self.plan, self.net.definition
        analysis = analysis_of(self.net, definition.call, definition.arrays)
        work = {str(rate): flops(analysis, plan.widths(rate)) for rate in plan.rates}
        return {
            "rates": list(plan.rates),
            "parameters": {
                str(rate): definition.parameters(rate) for rate in plan.rates
            },
            "variables": {str(rate): plan.parameters(rate) for rate in plan.rates},
            "contraction_flops": work,
            "flops": dict(work),
            "elastic": {
                "parameters": plan.elastic_share(),
                "flops": elastic_share(analysis),
            },
            "groups": {
                name: {
                    "size": group.size,
                    "unit": group.unit,
                    "span": group.span,
                    "widths": {str(rate): group.width(rate) for rate in plan.rates},
                    "channels": {
                        str(rate): plan.channels(name, rate)
                        for rate in (*plan.rates, 1.0)
                    },
                    "leaves": [f"{path}:{axis}" for path, axis in group.leaves],
                }
                for name, group in plan.groups.items()
            },
            "fixed": [
                {
                    "axis": f"{fixed.path}:{fixed.axis}",
                    "size": fixed.size,
                    "reason": fixed.reason.text,
                    "primitive": fixed.reason.primitive,
                    "where": fixed.reason.where,
                }
                for fixed in plan.fixed
            ],
            "products": plan.products(),
            "rounded": [
                {
                    "group": name,
                    "rate": rate,
                    "width": width,
                    "channels": plan.channels(name, rate),
                }
                for name, rate, width in plan.inexact()
            ],
            "not_sharded": plan.not_split_over(definition.settings.units.shards),
            "numbers": [
                {
                    "value": number.value,
                    "size": number.size,
                    "groups": list(number.groups),
                    "follows": number.follows,
                    "open": number.open,
                    "why": number.why or number.meets,
                    "where": number.where,
                }
                for number in self.net.definition.agreement.numbers
            ],
            "own_program": str(self.net.definition.agreement),
            "norms": self._norms(),
        }

    def _norms(self) -> dict[str, Any] | None:
        function = self.net.definition.function
        if not isinstance(function, ModuleFunction):
            return None
        if not function.sites and not function.left:
            return None
        return {
            "count": len(function.sites),
            "strategy": function.norm.name if function.sites else None,
            "why": _MEASURED if function.calibrated else function.why,
            "left": ["/".join(path) for path in function.left],
        }

    def details(self) -> str:
        """The report with, for each group, the axes of all arrays that narrow with it.

        An axis that is a product or a concatenation is written as what it is made of;
        what narrows in it has a star.
        """
        lines = [str(self), "", "what narrows together:"]
        for name, group in self.plan.groups.items():
            lines.append(f"  {name}, {group.size} in units of {group.unit}:")
            for path, axis in group.leaves:
                leaf = self.plan.leaf(path)
                made_of = f" = {leaf.axes[axis]}" if leaf is not None else ""
                lines.append(f"    {path}:{axis}{made_of}")
        return "\n".join(lines)

    def __str__(self) -> str:
        data = self.to_dict()
        rates = [f"{rate:g}" for rate in self.plan.rates]
        counts = [f"{count:,}" for count in data["parameters"].values()]
        work = [f"{count:.3g}" for count in data["contraction_flops"].values()]
        rows = [["parameters", "", *counts, ""]]
        if data["variables"] != data["parameters"]:
            held = [f"{count:,}" for count in data["variables"].values()]
            rows.append(["all variables", "", *held, ""])
        rows.append(["FLOPs of contractions", "", *work, ""])
        for name, group in data["groups"].items():
            channels = group["channels"]
            units = group["size"] / group["unit"]
            each = f"{units:g} x {channels['1.0'] / units:g}"
            widths = [str(channels[str(rate)]) for rate in self.plan.rates]
            rows.append([name, each, *widths, str(len(group["leaves"]))])
        elastic, count = data["elastic"], len(data["groups"])
        lines = [
            "1 group of axes narrows, to a prefix. It runs"
            if count == 1
            else f"{count} groups of axes narrow, each to a prefix. They run",
            f"through {elastic['parameters']:.1%} of the variables and "
            f"{elastic['flops']:.1%} of the FLOPs. Channels at each rate:",
        ]
        lines += table_lines(
            [["group", "units", *(f"r={r}" for r in rates), "arrays"], *rows]
        )
        lines += _about_norms(data["norms"])
        reasons: dict[str, list[str]] = {}
        for fixed in data["fixed"]:
            why = ", ".join(filter(None, (fixed["reason"], fixed["where"])))
            reasons.setdefault(why, []).append(f"{fixed['axis']} ({fixed['size']})")
        if reasons:
            lines += ["", f"{len(data['fixed'])} axes keep their size:"]
        for why, axes in reasons.items():
            more = f", and {len(axes) - 3} more" if len(axes) > 3 else ""
            lines.append(f"  {why}: {', '.join(axes[:3])}{more}")
        if data["products"]:
            lines += ["", "axes of which several factors narrow, each by itself:"]
            lines += [f"  {axis} = {of}" for axis, of in data["products"].items()]
        if data["rounded"]:
            lines += ["", "rates that a group cannot keep exactly:"]
        for rounded in data["rounded"]:
            group = data["groups"][rounded["group"]]
            lines.append(
                f"  {rounded['group']}: rate {rounded['rate']:g} keeps "
                f"{rounded['channels']} of {group['channels']['1.0']} channels"
            )
        if data["not_sharded"]:
            shards = self.net.definition.settings.units.shards
            lines += [
                "",
                f"groups that shards={shards} does not split into parts of two units,",
                "so that slicing moves data between devices:",
                f"  {', '.join(data['not_sharded'])}",
            ]
        numbers = self.net.definition.agreement.numbers
        if numbers:
            lines += ["", "numbers that are a power of a size that narrows:"]
        lines += [f"  {number}" for number in numbers]
        return "\n".join(lines)


def report(net: Sliceable) -> Report:
    """What narrows with what; what is fixed, and why, with the line of the user's code.

    Args:
      net: from `upgrade` or `extract`; types in place of arrays are enough.

    Returns:
      A `Report`, to be printed, or asked for `.details()` and `.to_dict()`.

    >>> import jax.numpy as jnp, mslice_jax as ms
    >>> def mlp(p, x):
    ...     return jnp.tanh(x @ p["w1"]) @ p["w2"]
    >>> p = {"w1": jnp.ones((3, 16)), "w2": jnp.ones((16, 2))}
    >>> net = ms.upgrade(mlp, p, jnp.ones((1, 3)), rates=(0.5, 1.0))
    >>> print(str(ms.report(net)).splitlines()[5].split())
    ['w1:1', '8', 'x', '2', '8', '16', '2']
    """
    return Report(net)


def _about_norms(norms: Mapping[str, Any] | None) -> list[str]:
    """What became of the batch norms, and why; nothing where there are none."""
    if norms is None:
        return []
    lines = [""]
    if norms["count"]:
        strategy = STRATEGIES[norms["strategy"]]
        lines.append(
            f"batch norms ({norms['count']}) are {strategy.becomes}: {norms['why']}."
        )
        if strategy.calibrated and norms["why"] != _MEASURED:
            lines.append(
                "  They fit full width; calibrate(net, batches) measures the others."
            )
    if norms["left"]:
        more = len(norms["left"]) - 3
        lines.append(
            "statistics left as they are, for no batch norm of Flax that this call "
            f"reaches has them: {', '.join(norms['left'][:3])}"
            + (f", and {more} more" if more > 0 else "")
        )
    return lines


def analysis_of(net: Sliceable, call: Call, arrays: Sequence[Any]) -> Analysis:
    """What is known of the program of a call, at full width.

    Args:
      net: a network; types are enough.
      call: the call.
      arrays: its arrays, or their types.
    """
    definition = net.definition
    types = full_types(net.plan, net.variables, net.part)
    program = definition.program(net.plan.resolve(net.rates[-1]), call, types, arrays)
    return program.analysis


def contraction_flops(
    net: Sliceable, inputs: Sequence[Any], kwargs: Mapping[str, Any]
) -> float:
    """Operations of the contractions of a call, at the widths of the network."""
    call, arrays = Call.split(inputs, kwargs)
    analysis = analysis_of(net, call, [type_of(x) for x in arrays])
    return flops(analysis, net.plan.widths(net.part))


def table_lines(rows: list[list[str]]) -> list[str]:
    """Rows of text as lines: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        first, *rest = zip(row, widths, strict=True)
        cells = [first[0].ljust(first[1]), *(c.rjust(w) for c, w in rest)]
        lines.append(("  " + "  ".join(cells)).rstrip())
    return lines
