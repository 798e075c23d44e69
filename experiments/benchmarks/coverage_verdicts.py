"""The library's own verdicts on a network, beside the proofs of the coverage.

Only this file knows the wording; the table has a column for each verdict.
"""

import mslice_jax as ms

NUMBER_WARNING: type[Warning] = ms.NumberWarning
"""The warning of `upgrade` for numbers that look like a size, and stay."""


def open_numbers(net: ms.Sliceable) -> int:
    """Number of numbers in that warning."""
    return sum(number.open for number in net.definition.agreement.numbers)


def own_trace(net: ms.Sliceable) -> str:
    """Whether the function's own trace at the narrow shapes is the narrow program.

    Returns:
      "same", or in short why the two cannot be compared: the error of narrow arrays, or
      a property of the program.
    """
    agreement = net.definition.agreement
    if agreement.comparable:
        return "same"
    return agreement.reason.partition(":")[0].partition(" (")[0]
