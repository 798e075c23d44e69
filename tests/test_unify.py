"""Making axes equal: the structure that two views of one axis imply."""

import pytest

from mslice_jax.core.axes import Concat, Product, Unit, Whole
from mslice_jax.core.solver import (
    Dim,
    Equations,
    Reason,
    atoms,
    factors,
    find,
    segments,
)


def sizes(parts):
    return [find(part).size for part in parts]


@pytest.fixture
def eq():
    return Equations()


def test_unknowns_become_one(eq):
    a, b, c = Dim(8), Dim(8), Dim(8)
    eq.equate(a, b)
    eq.equate(b, c)
    assert find(a) is find(c)


def test_fixed_propagates_with_its_first_reason(eq):
    a, b = Dim(8, Reason("input")), Dim(8)
    eq.equate(b, a)
    eq.fix(b, "later")
    assert str(find(b).fixed) == "input"


def test_two_splits_refine_each_other(eq):
    """64 = 8 x 8 and 64 = 16 x 4 are 8 x 2 x 4."""
    a = Dim(64)
    eights = eq.split(a, (8, 8))
    sixteen, four = eq.split(a, (16, 4))
    assert sizes(factors(a)) == [8, 2, 4]
    assert find(factors(sixteen)[0]) is find(eights[0])
    assert find(factors(eights[1])[1]) is find(four)


def test_splits_that_do_not_divide_are_fixed(eq):
    a = Dim(24)
    left, right = eq.split(a, (4, 6)), eq.split(a, (6, 4))
    for dim in (*left, *right):
        assert all(atom.fixed for atom in atoms(dim))


def test_two_cuts_refine_each_other(eq):
    """10 = 4 + 6 and 10 = 7 + 3 are 4 + 3 + 3."""
    a = Dim(10)
    eq.cut(a, (4, 6))
    eq.cut(a, (7, 3))
    assert sizes(segments(a)) == [4, 3, 3]


def test_groups_are_split_over_branches(eq):
    """Branches of 16 and 24 in 10 groups of 4: 4 and 6 groups."""
    a = Dim(40)
    one, two = eq.cut(a, (16, 24))
    groups, inner = eq.split(a, (10, 4))
    assert sizes(segments(groups)) == [4, 6]
    assert sizes(factors(one)) == [4, 4]
    assert sizes(factors(two)) == [6, 4]
    assert find(factors(one)[1]) is find(factors(two)[1]) is find(inner)


def test_fused_projection_is_three_times_heads(eq):
    """q, k, v of 8, concatenated, seen as 3 x 2 heads x 4: the heads are shared."""
    a = Dim(24)
    q, k, v = eq.cut(a, (8, 8, 8))
    three, heads, _ = eq.split(a, (3, 2, 4))
    assert sizes(segments(three)) == [1, 1, 1]
    for part in (q, k, v):
        assert find(factors(part)[0]) is find(heads)


def test_one_group_over_several_branches_is_kept(eq):
    """2 groups over branches of 4, 4, 4, 4: each spans two, so there are still 2."""
    a = Dim(16)
    parts = eq.cut(a, (4, 4, 4, 4))
    groups, inner = eq.split(a, (2, 8))
    assert all(atom.fixed for atom in atoms(groups))
    assert sizes(segments(inner)) == [4, 4]
    assert find(parts[0]) is find(parts[2])
    assert not any(atom.fixed for part in parts for atom in atoms(part))


def test_groups_across_a_boundary_are_fixed(eq):
    """Branches of 6 and 10 in groups of 4: one group has channels of both."""
    a = Dim(16)
    one, two = eq.cut(a, (6, 10))
    eq.split(a, (4, 4))
    assert all(atom.fixed for part in (one, two) for atom in atoms(part))


def test_a_concatenation_inside_a_product_is_cut_through(eq):
    """(4 + 4) x 2 sliced in the middle: the boundary falls between the segments."""
    outer = eq.concat([Dim(4), Dim(4)])
    merged = eq.product([outer, Dim(2)])
    first, second = eq.cut(merged, (8, 8))
    assert sizes(factors(first)) == sizes(factors(second)) == [4, 2]
    assert not any(atom.fixed for atom in atoms(merged))


def test_unequal_sizes_are_a_bug(eq):
    with pytest.raises(AssertionError, match="8 and 9"):
        eq.equate(Dim(8), Dim(9))


def test_freeze(eq):
    a, b, c = Dim(4), Dim(2), Dim(3)
    a.group = "a"
    axis = eq.freeze(eq.concat([eq.product([a, b]), c]), {})
    assert axis == Concat((Product((Unit(4, "a"), Whole(2))), Whole(3)))
    b.fixed = c.fixed = Reason("why")
    assert eq.freeze(eq.product([b, c]), {}) == Whole(6)


def test_a_fixed_axis_has_a_reason(eq):
    """Fixed axes of one size are equal, so the reasons are compared by themselves."""
    a, b, c = Dim(4), Dim(2), Dim(3)
    a.fixed, b.fixed = Reason("an output"), Reason("a reshape")
    assert eq.freeze(a, {}).reason is a.fixed
    assert eq.freeze(eq.product([b, a]), {}).reason is b.fixed
    assert eq.freeze(eq.concat([a, b]), {}).reason is a.fixed
    # An axis that nothing fixed has no reason; the first part with one gives it.
    assert eq.freeze(Dim(5), {}).reason is None
    assert eq.freeze(eq.concat([c, b, a]), {}).reason is b.fixed


def test_a_unit_of_a_plan_that_is_split_is_told_with_the_split(eq):
    for swapped in (False, True):
        eq.why = Reason("a reshape")
        merged = eq.product([Dim(2), Dim(4)])
        eq.why = None  # as between results and what the plan says of them
        unit = Dim(8)
        unit.group = "units"
        eq.equate(*((merged, unit) if swapped else (unit, merged)))
    assert eq.clashes == [("units", "splits it (a reshape)")] * 2


def test_units_of_a_plan_that_become_one_are_told(eq):
    a, b = Dim(8), Dim(8)
    a.group, b.group = "a", "b"
    eq.equate(a, b)
    assert eq.clashes == [("a", "ties it to b")]
