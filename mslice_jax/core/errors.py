"""The errors of rates and plans."""


class RateError(ValueError):
    """A slice rate, or a set of them, that cannot be used."""


class PlanError(ValueError):
    """A network that cannot be sliced, or a call that does not fit the plan."""
