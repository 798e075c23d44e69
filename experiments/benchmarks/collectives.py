"""The collectives of a compiled program, and the bytes that they move."""

import collections
import math
import re

_KINDS = (
    "all-gather", "all-reduce", "all-to-all", "collective-broadcast",
    "collective-permute", "ragged-all-to-all", "reduce-scatter",
)  # fmt: skip
# %name = f32[8,4]{1,0} all-gather(...), channel_id=3, ...
_COLLECTIVE = re.compile(
    rf"%?(?P<name>\S+) = (?P<type>.+?) (?P<kind>{'|'.join(_KINDS)})(?P<start>-start)?"
    r"\((?:.*?channel_id=(?P<channel>\d+))?"
)
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+[a-z0-9]*)\[([\d,]*)\]")


def collectives(program: str) -> tuple[dict[str, int], dict[str, int]]:
    """Number of each kind in compiled HLO, and the bytes of their results.

    A collective that TPUs run piece by piece, beside something else, occurs in the text
    several times: its channel shows that it is one.

    Example:
      >>> collectives("%a = (f32[2,3], bf16[]) all-reduce(%b, %c), channel_id=1")
      ({'all-reduce': 1}, {'all-reduce': 26})
    """
    found: dict[tuple[str, str], int] = {}
    for line in program.splitlines():
        if match := _COLLECTIVE.search(line):
            arrays = [_bytes(*array) for array in _ARRAY.findall(match["type"])]
            if match["start"] and match["kind"] != "all-reduce":
                # (operands, results, notes of the compiler): u32[] of the last.
                arrays = [_bytes(*a) for a in _ARRAY.findall(match["type"]) if a[1]]
                arrays = arrays[len(arrays) // 2 :]
            key = match["kind"], match["channel"] or match["name"]
            found[key] = max(found.get(key, 0), sum(arrays))
    number: dict[str, int] = collections.Counter()
    moved: dict[str, int] = collections.Counter()
    for (kind, _), size in sorted(found.items()):
        number[kind] += 1
        moved[kind] += size
    return dict(number), dict(moved)


def _bytes(dtype: str, shape: str) -> int:
    bits = 8 if dtype == "pred" else int(re.findall(r"\d+", dtype)[0])
    return math.prod(int(size) for size in shape.split(",") if size) * bits // 8
