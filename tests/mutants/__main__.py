"""Do quick tests notice slips? python -m tests.mutants --count 60 --seed 0.

Makes one-line mutants of the core and of what stands around it (`FILES`), each at a
line drawn at random, and runs for each the tests that run this line, those that take
the least time first, until one fails. `TESTS` are quick; `--seconds` bounds
what a mutant may take. One that takes much longer than the tests do counts as found.

All of it happens in the folder `--work`, on a copy of the checkout: which test runs
which line (`reach/`, made once, by a file of tests), and the results, a line of JSON
for each mutant. A run that was stopped goes on where it was; delete the folder after a
change of the package. A survivor is looked at by hand: a test is missing (write it,
then `--again`), or the program does the same.

Libraries do not fit: mutmut leaves out decorated functions, as all rules are, and
cosmic-ray runs the same tests for every mutant.
"""

import argparse
import dataclasses
import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.mutants.edits import Edit, edits

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "mslice_jax"
FILES = ("core", "adapters", "reorder.py", "sliceable.py", "upgrade.py")
TESTS = (
    "rates unify dims growth follows live lookups call shape_rules rules_parallel "
    "rules bad_input report index_codes numbers factors trees types screen shards "
    "copies sliceable memory rules_means agreement random_constants control "
    "derivatives norms programs networks nnx_module primitives importance layers "
    "profile loops counts rare_rules source streams"
)
PATHS = [f"{PACKAGE}/core", "tests/functions", "tests/frameworks"]
PATHS += ["tests/storage/test_saving.py", "tests/train/test_slice_state.py"]
PATHS += [f"tests/test_{name}.py" for name in TESTS.split()]
CPU, WALL = 3, 7200  # times the seconds of the tests; seconds at the most


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A slip in a file; `before` and `after` are the lines that it changes."""

    file: str
    line: int
    kind: str
    before: str
    after: str


def candidates(package: Path) -> Iterator[tuple[str, Edit]]:
    """All slips in all files, with the file's path in the package."""
    for name in FILES:
        path = package / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            for edit in edits(file.read_text(encoding="utf-8")):
                yield file.relative_to(package).as_posix(), edit


def draw(package: Path, count: int, seed: int) -> list[tuple[str, Edit]]:
    """At lines drawn without replacement, one slip of a kind drawn for each."""
    lines: dict[tuple[str, int], dict[str, list[Edit]]] = {}
    for file, edit in candidates(package):
        kinds = lines.setdefault((file, edit.start[0]), {})
        kinds.setdefault(edit.kind, []).append(edit)
    random_ = random.Random(seed)
    drawn = []
    for place in random_.sample(list(lines), count):
        kind = random_.choice(list(lines[place]))
        drawn.append((place[0], random_.choice(lines[place][kind])))
    return drawn


def described(file: str, edit: Edit, source: str) -> Mutant:
    """The mutant as it is printed."""
    last = edit.end[0] - len(source.splitlines())
    before = source.splitlines()[edit.start[0] - 1 : edit.end[0]]
    after = edit.apply(source).splitlines()
    after = after[edit.start[0] - 1 : len(after) + last]
    shown = ("\n".join(lines) for lines in (before, after))
    return Mutant(file, edit.start[0], edit.kind, *shown)


def prepared(work: Path, paths: Iterable[str]) -> dict[str, dict]:
    """The seconds and the lines of every test; makes what is not there yet."""
    tree, folder = work / "tree", work / "reach"
    left_out = shutil.ignore_patterns(".git", "__pycache__", ".*_cache", "site")
    shutil.copytree(ROOT, tree, ignore=left_out, dirs_exist_ok=True)
    folder.mkdir(exist_ok=True)
    tests: dict[str, dict] = {}
    for path in paths:
        out = folder / f"{path.replace('/', '.')}.json"
        newest = max(changed(tree / PACKAGE), changed(tree / path))
        if not out.exists() or out.stat().st_mtime < newest:
            print(f"which lines {path} runs", flush=True)
            command = ["-m", "tests.mutants.reach", str(out), PACKAGE, "-q", path]
            command += ["-m", "not slow", "-p", "no:cacheprovider"]
            with (folder / f"{out.stem}.log").open("w") as log:
                run([sys.executable, *command], tree, work, log=log)
        tests |= json.loads(out.read_text(encoding="utf-8"))
    return tests


def changed(path: Path) -> float:
    """When a file of tests, or one in the folder, was changed."""
    files = path.rglob("*.py") if path.is_dir() else [path]
    return max(file.stat().st_mtime for file in files)


def run(command: list[str], tree: Path, work: Path, *, cpu: int = 0, log=None) -> int:
    """Runs a command in the copy; negative if it was stopped for its time."""
    environment = {"JAX_COMPILATION_CACHE_DIR": str(work / "compiled")}
    limit = None
    if cpu:
        limit = lambda: resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu))  # noqa: E731
    try:
        return subprocess.run(
            command,
            cwd=tree,
            env=os.environ | environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            timeout=WALL,
            preexec_fn=limit,
        ).returncode
    except subprocess.TimeoutExpired:
        return -1


def chosen(tests: dict[str, dict], file: str, edit: Edit, seconds: float) -> list[str]:
    """Tests that run the statement, the quickest first, of many files."""
    first, last = edit.lines
    wanted = ((1 << (last + 1)) - 1) ^ ((1 << first) - 1)
    lines = {name: int(t["lines"].get(file, "0"), 16) for name, t in tests.items()}
    run = [name for name in tests if lines[name] & wanted]
    if not (run and edit.inside):  # of what an import runs, those that run the file
        run = [name for name in tests if lines[name]]
    found = [(tests[name]["seconds"], name) for name in run]
    earlier: dict[str, int] = {}
    ranked = []
    for cost, name in sorted(found):
        of = name.partition("::")[0]
        earlier[of] = earlier.get(of, -1) + 1
        # The tests of one file are much alike.
        ranked.append(((cost + 0.01) * (1 + earlier[of] / 5), cost, name))
    names = []
    for _, cost, name in sorted(ranked):
        seconds -= cost
        if seconds < 0 and names:
            break
        names.append(name)
    return names


def tried(work: Path, tests: dict[str, dict], file: str, edit: Edit, seconds: float):
    """Runs the tests on a mutant: by what it was found, or None."""
    names = chosen(tests, file, edit, seconds)
    if not names:
        return None, 0
    target = work / "tree" / PACKAGE / file
    original = target.read_text(encoding="utf-8")
    was = target.stat()
    (work / "tests.txt").write_text("\n".join(names), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=short", "-rfE"]
    command += ["-p", "no:cacheprovider", f"@{work / 'tests.txt'}"]
    began = time.time()
    try:
        target.write_text(edit.apply(original), encoding="utf-8")
        with (work / "log.txt").open("w") as log:
            cpu = 30 + CPU * int(sum(tests[name]["seconds"] for name in names))
            code = run(command, work / "tree", work, cpu=cpu, log=log)
    finally:
        target.write_text(original, encoding="utf-8")
        os.utime(target, (was.st_atime, was.st_mtime))
    if code < 0:
        for file_ in (work / "compiled").rglob("*"):  # may be written by half
            if file_.is_file() and file_.stat().st_mtime >= began - 1:
                file_.unlink()
        return "its time", len(names)
    said = (work / "log.txt").read_text(encoding="utf-8", errors="replace")
    failed = re.findall(r"^(?:FAILED|ERROR) (\S.*?)(?: - .*)?$", said, re.MULTILINE)
    return (failed[0] if failed else f"exit code {code}") if code else None, len(names)


def sound(work: Path, results: Iterable[dict]) -> bool:
    """Whether the tests that found mutants pass without them, in one process."""
    names = sorted({r["by"] for r in results if "::" in (r["by"] or "")})
    (work / "tests.txt").write_text("\n".join(names), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    return not run([*command, f"@{work / 'tests.txt'}"], work / "tree", work)


def summary(results: Iterable[dict]) -> int:
    """Prints what was found; how many mutants survived."""
    results = list(results)
    survived = [result for result in results if not result["by"]]
    for result in survived:
        print(f"\n{result['file']}:{result['line']}  {result['kind']}")
        print("\n".join(f"- {line}" for line in result["before"].splitlines()))
        print("\n".join(f"+ {line}" for line in result["after"].splitlines()))
    found = len(results) - len(survived)
    print(f"\n{len(results)} mutants: {found} found, {len(survived)} survived")
    return len(survived)


def main() -> int:
    """Makes the mutants and runs the tests; 1 if more than one in ten survived."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=30, help="of tests, a mutant")
    parser.add_argument("--tests", nargs="+", default=PATHS, help="paths")
    parser.add_argument("--again", action="store_true", help="survivors too")
    default = Path(tempfile.gettempdir()) / "mslice-jax-mutants"
    parser.add_argument("--work", type=Path, default=default, help="folder")
    args = parser.parse_args()
    work = args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    tests = prepared(work, args.tests)
    out = work / f"results_{args.seed}.jsonl"
    out.touch()
    results = {}
    for line in out.read_text(encoding="utf-8").splitlines():
        result = json.loads(line)
        results[result["number"]] = result
    package = work / "tree" / PACKAGE
    for number, (file, edit) in enumerate(draw(package, args.count, args.seed)):
        if number in results and (results[number]["by"] or not args.again):
            continue
        source = (package / file).read_text(encoding="utf-8")
        mutant = described(file, edit, source)
        began = time.perf_counter()
        by, count = tried(work, tests, file, edit, args.seconds)
        result = {"number": number, "by": by, "tests": count}
        result["seconds"] = round(time.perf_counter() - began, 1)
        results[number] = result = result | dataclasses.asdict(mutant)
        with out.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(result) + "\n")
        print(f"{number} {file}:{mutant.line} {mutant.kind}: {by}", flush=True)
    if not sound(work, results.values()):
        print("some of these tests fail without a mutant, too: see above")
        return 1
    survived = summary(results[number] for number in sorted(results))
    return 1 if survived * 10 > args.count else 0


if __name__ == "__main__":
    sys.exit(main())
