"""Ways to write numbers that count: one table a file, joined here."""

from tests.spellings.calls import CALLS
from tests.spellings.derivatives import DERIVATIVES
from tests.spellings.logarithms import LOGARITHMS
from tests.spellings.means import MEANS
from tests.spellings.norms import NORMS
from tests.spellings.spelling import Spelling as Spelling
from tests.spellings.stays import REPORTED as REPORTED
from tests.spellings.stays import STAYS as STAYS

TABLES = {
    "means": MEANS,
    "norms": NORMS,
    "logarithms": LOGARITHMS,
    "calls": CALLS,
    "derivatives": DERIVATIVES,
}
FOLLOWS: dict[str, Spelling] = {
    f"{table}-{name}": spelling
    for table, spellings in TABLES.items()
    for name, spelling in spellings.items()
}
"""Every number in these that is made of `n` follows the width."""

MAY_BE_WHOLE = {
    "means-convolution_along": "units are positions of a convolution",
    "means-pooling": "units are positions of a window",
    "means-projection": "an identity depends on the position of a unit",
    "calls-scan_over_units": "a loop goes from unit to unit",
    "calls-welford": "a loop goes from unit to unit",
}
"""Tables where nothing has to narrow, and why; an axis that narrows is right."""

ONLY_OWN = {
    "logarithms-logmeanexp_inside": "log(n) is subtracted before the sum",
    "logarithms-smoothed": "a number is a multiple of 1 / n, added to a share",
    "logarithms-geometric_terms": "1 / n is an exponent before the product",
    "logarithms-in_logarithms": "a reduction that is neither sum nor product",
    "calls-scan_counting": "the loop sums the number, too",
    "derivatives-inner_step": "a step of a gradient, scaled",
    "derivatives-curvature": "a second derivative",
}
"""Numbers that the analysis misses, and why; the function's own program shows them."""
