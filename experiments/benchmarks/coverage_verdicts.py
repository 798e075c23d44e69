"""What the library itself says of a network, beside the proofs of the coverage.

The one place that knows how it says so; the table has a column for each.
"""

import mslice_jax as ms

NUMBER_WARNING: type[Warning] = ms.NumberWarning
"""What `upgrade` warns with of numbers that look like a size, and stay."""


def open_numbers(net: ms.Sliceable) -> int:
    """How many numbers that warning names."""
    return sum(number.open for number in net.definition.agreement.numbers)


def own_trace(net: ms.Sliceable) -> str:
    """Whether the function's own trace at the narrow shapes is the narrow program.

    Returns:
      "same", or in short why the two cannot be compared: the error that narrow arrays
      raise, or what the program does.
    """
    agreement = net.definition.agreement
    if agreement.comparable:
        return "same"
    return agreement.reason.partition(":")[0].partition(" (")[0]
