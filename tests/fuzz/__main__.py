"""Many random networks: python -m tests.fuzz --count 2000 --seed 0.

Prints what was seen, and writes the source of each failure to --out, ready to be kept
in `tests/fuzz/kept.py`. The first failure of a kind is made small: blocks that it does
not need are left out.
"""

import argparse
import collections
import dataclasses
import os
import sys
import time
import traceback
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")

from tests.fuzz.proofs import Facts, ProofError
from tests.fuzz.recipe import Recipe, numbered


@dataclasses.dataclass(frozen=True)
class Failure:
    """What went wrong: the kind, by which failures are counted, and the details."""

    kind: str
    details: str


def outcome(recipe: Recipe, programs: bool) -> Facts | Failure:
    """What a network was put through, or how it failed."""
    try:
        return recipe.check(programs)
    except ProofError as error:
        return Failure(str(error).split(":")[0], str(error))
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        within = [frame for frame in frames if "mslice_jax" in frame.filename]
        at = f" in {Path(within[-1].filename).name}" if within else ""
        return Failure(f"{type(error).__name__}{at}", traceback.format_exc(limit=-8))


def smaller(recipe: Recipe, kind: str, programs: bool) -> Recipe:
    """The recipe without the blocks that the failure does not need."""
    at = 1  # the first and the last are input and output
    while at < len(recipe.blocks) - 1:
        blocks = recipe.blocks[:at] + recipe.blocks[at + 1 :]
        fewer = recipe._replace(blocks=blocks)
        found = outcome(fewer, programs)
        if isinstance(found, Failure) and found.kind == kind:
            recipe = fewer
        else:
            at += 1
    return recipe


def main() -> int:
    """Runs the networks; 1 if one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, help="number of the first")
    parser.add_argument("--programs", action="store_true", help="trace, do not run")
    parser.add_argument("--out", type=Path, default=Path("fuzz_failures.txt"))
    args = parser.parse_args()
    seen: collections.Counter[str] = collections.Counter()
    kinds: collections.Counter[str] = collections.Counter()
    began = time.perf_counter()
    for done in range(args.count):
        number = args.start + done
        recipe = numbered(args.seed, number)
        found = outcome(recipe, args.programs)
        if isinstance(found, Failure):
            kinds[found.kind] += 1
            if kinds[found.kind] == 1:
                recipe = smaller(recipe, found.kind, args.programs)
            print(f"network {number}: {found.kind}", flush=True)
            with args.out.open("a", encoding="utf-8") as file:
                file.write(
                    f"# seed {args.seed}, network {number}, {found.kind}\n{recipe}\n"
                    f"{recipe.network()}\n{found.details}\n\n"
                )
        else:
            seen.update(k for k, v in dataclasses.asdict(found).items() if v)
        if (done + 1) % 100 == 0:
            print(f"{done + 1} of {args.count}: {dict(seen)}", flush=True)
    seconds = time.perf_counter() - began
    print(f"{args.count} networks in {seconds:.0f} s; put through: {dict(seen)}")
    print(f"failures: {dict(kinds)}" if kinds else "no failure")
    return 1 if kinds else 0


if __name__ == "__main__":
    sys.exit(main())
