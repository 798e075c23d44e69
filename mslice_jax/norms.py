"""Batch norm and slicing: three strategies.

The statistics of a batch norm belong to one width: a narrower input has another mean
and variance. Model Slicing (section 3.2) therefore swaps batch norms:

* ``group``: each becomes a group norm with the same scale and bias. Its groups are the
  units that narrow, and no statistics are kept (the paper's choice).
* ``switchable``: one batch norm per rate, with its own scale, bias and statistics (the
  MultiBN of the authors' code; Slimmable Networks, Yu et al., ICLR 2019).
* ``shared``: batch norms stay as they are; `calibrate` measures statistics for each
  rate after training (US-Nets, Yu and Huang, ICCV 2019).

How a model of Flax takes them stands in `mslice_jax.functions`.
"""

STRATEGIES = ("group", "switchable", "shared")


def group_count(features: int, groups: int) -> int:
    """The largest divisor of the features up to `groups`: how many a group norm has.

    >>> group_count(64, 8), group_count(12, 8), group_count(4, 8)
    (8, 6, 4)
    """
    return next(g for g in range(min(groups, features), 0, -1) if features % g == 0)
