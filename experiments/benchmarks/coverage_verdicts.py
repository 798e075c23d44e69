"""What the library itself says of a network, beside the proofs of the coverage.

The one place that knows how it says so; the table has a column for each.
"""

import mslice_jax as ms

NUMBER_WARNING: type[Warning] | None = None
"""What `upgrade` warns with of a number that stays; None while it does not warn."""


def own_trace(net: ms.Sliceable) -> str | None:
    """Whether the function's own trace at the narrow shapes is the narrow program.

    Returns:
      "same", or why the two cannot be compared ("sizes in attributes"); None where the
      library does not say.
    """
    return None
