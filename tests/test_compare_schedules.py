"""The comparison of schemes: its arithmetic, its runs, and what it refuses."""

import json
import math
import re

import pytest

from experiments import compare_schedules
from experiments.compare_schedules import main
from experiments.comparison import outcome
from experiments.comparison.flags import reason
from experiments.comparison.schemes import SCHEMES, Member, changes, ends_first
from experiments.screen import Bar
from experiments.settings import Settings
from mslice_jax.schedules import make_schedule
from tests.test_recipes import TINY

RATES = (1.0, 0.75, 0.5, 0.25)


def test_means_deviations_and_differences_by_hand():
    values = {
        "independent": {1.0: [0.9, 0.8, 0.7], 0.5: [0.6, 0.6, 0.6]},
        "static": {1.0: [0.92, 0.84, 0.7], 0.5: [0.5, 0.6, 0.4]},
    }
    found = outcome.cells(values)
    alone, static = found["independent"][1.0], found["static"][1.0]
    assert alone.mean == pytest.approx(0.8)
    assert alone.deviation == pytest.approx(0.1)  # sqrt((.01 + 0 + .01) / 2)
    assert alone.difference is None and alone.error is None
    # Paired: .02, .04 and 0; their deviation is .02.
    assert static.difference == pytest.approx(0.02)
    assert static.error == pytest.approx(0.02 / math.sqrt(3))
    assert found["static"][0.5].difference == pytest.approx(-0.1)
    assert found["static"][0.5].error == pytest.approx(0.1 / math.sqrt(3))

    table = outcome.rows(found, {"independent": 1, "static": 2}, scale=100)
    assert table == [
        ["scheme", "rates a step", "r = 1", "r = 0.5"],
        ["independent", "1", "80.00 ± 10.00", "60.00 ± 0.00"],
        ["static", "2", "82.00 ± 11.14 (+2.00 ± 1.15)"]
        + ["50.00 ± 10.00 (-10.00 ± 5.77)"],
    ]
    assert outcome.markdown(table, "Below.").splitlines()[1:3] == [
        "| --- | ---: | ---: | ---: |",
        "| independent | 1 | 80.00 ± 10.00 | 60.00 ± 0.00 |",
    ]


def test_one_seed_has_no_deviation():
    found = outcome.cells({"independent": {1.0: [3.0]}, "static": {1.0: [4.5]}})
    cell = found["static"][1.0]
    assert (cell.deviation, cell.difference, cell.error) == (None, 1.5, None)
    table = outcome.rows(found, {"independent": 1, "static": 2})
    assert table[2] == ["static", "2", "4.50 (+1.50)"]
    alone = outcome.cells({"static": {1.0: [4.5, 5.5]}})
    assert alone["static"][1.0].difference is None


@pytest.mark.parametrize(
    ("scheme", "always", "count"),
    [
        ("static", set(RATES), 4),
        ("random", set(), 2),
        ("weighted", set(), 2),
        ("random_min", {0.25}, 2),
        ("random_max", {1.0}, 2),
        ("random_min_max", {1.0, 0.25}, 3),
        ("sandwich", {1.0, 0.25}, 4),
        ("sandwich_distill", {1.0, 0.25}, 4),
    ],
)
def test_rates_that_a_scheme_trains(scheme, always, count):
    of = changes(scheme, RATES, Settings())
    schedule = make_schedule(
        of["schedule"],
        of["rates"],
        num_random=1 if of["num_random"] is None else of["num_random"],
        weights=of["rate_weights"],
    )
    steps = [set(schedule(step)) for step in range(60)]
    assert set.intersection(*steps) == always
    assert {len(rates) for rates in steps} == {count}
    trained = set.union(*steps)
    assert trained >= set(RATES)
    assert trained - set(RATES) == (
        {0.875, 0.625, 0.375} if scheme.startswith("sandwich") else set()
    )
    assert of["distill"] == (0.5 if scheme == "sandwich_distill" else 0)


def test_flags_of_one_scheme():
    given = Settings(rate_weights=(1, 2, 3, 4), distill=0.7, temperature=2.0)
    assert changes("weighted", RATES, given)["rate_weights"] == (1, 2, 3, 4)
    assert changes("random", RATES, given)["rate_weights"] is None
    taught = changes("sandwich_distill", RATES, given)
    assert (taught["distill"], taught["temperature"]) == (0.7, 2.0)
    assert changes("sandwich", RATES, given)["temperature"] is None
    assert changes("independent", (0.5,), given)["rates"] == (0.5,)
    assert ends_first((0.5, 1.0)) == (0.25, 0.5)
    assert set(compare_schedules.Flags().schemes) == set(SCHEMES)


class Killed(BaseException):
    """Ends the process as SIGKILL does: nothing is saved on the way."""


ARGS = "--schemes independent static --rates 1 .5 --epochs 2 --train-examples 70"
ARGS = [*ARGS.split(), "--batch-size", "64", "--max-test-examples", "80"]


def numbers(folder):
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A comparison that was killed in its third run, and then went on.

    Its folder, the steps of each part, and what it showed.
    """
    folder = tmp_path_factory.mktemp("comparison") / "all"
    args = [*ARGS, "--seeds", "0", "--workdir", str(folder)]
    stepped, steps = Bar.stepped, []

    def count(self, step, losses, examples_per_second):
        steps.append((tuple(losses), step))
        if len(steps) == 6:
            raise Killed
        stepped(self, step, losses, examples_per_second)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Bar, "stepped", count)
        with pytest.raises(Killed):
            main(args, TINY)
        before, steps[:] = [*steps], []
        unfinished = not (folder / "results.json").exists()
        assert main(args, TINY) == 0
    return folder, before, steps, unfinished


def test_a_comparison_that_was_killed_goes_on(killed, capsys):
    folder, before, after, unfinished = killed
    # One step an epoch. Of the last run the first epoch was saved, the second lost.
    assert before == [
        ((1.0,), 1), ((1.0,), 2), ((0.5,), 1), ((0.5,), 2), ((1.0, 0.5), 1),
        ((1.0, 0.5), 2),
    ]  # fmt: skip
    assert unfinished
    assert after == [((1.0, 0.5), 2)]
    assert "Resumed at step 1" in (folder / "static/seed-0/log.txt").read_text()

    found = numbers(folder)
    for scheme, run in (("static", "static"), ("independent", "independent-0.5")):
        summary = json.loads((folder / run / "seed-0/summary.json").read_text())
        cell = found["schemes"][scheme]["0.5"]
        assert cell["values"] == [summary["rates"]["0.5"]["accuracy"]]
    assert found["schemes"]["static"]["0.5"]["difference"] == pytest.approx(
        found["schemes"]["static"]["0.5"]["mean"]
        - found["schemes"]["independent"]["0.5"]["mean"]
    )
    assert (folder / "schemes.png").read_bytes().startswith(b"\x89PNG")
    lines = (folder / "results.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in lines[:4]] == [
        "| scheme", "| ---", "| independent", "| static"
    ]  # fmt: skip

    # Group by group, after each epoch once.
    scales = (folder / "static/seed-0/norm_scales.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in scales] == [1, 2]
    assert (folder / "static/seed-0/norm_scales.png").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--epochs", "3"], "--epochs was 2 and is 3"),
        (["--rates", "1", ".25"], r"--rates was \[1.0, 0.5\] and is \[1.0, 0.25\]"),
    ],
)
def test_a_folder_of_another_comparison_is_refused(killed, capsys, args, message):
    folder, *_ = killed
    before = {path: path.stat().st_mtime for path in folder.rglob("*")}
    code = main([*ARGS, "--seeds", "0", "--workdir", str(folder), *args], TINY)
    error = capsys.readouterr().err
    assert code == 2 and re.search(message, error)
    assert error.count("\n") == 1
    assert {path: path.stat().st_mtime for path in folder.rglob("*")} == before


@pytest.mark.nightly
def test_a_shortened_default_command(tmp_path, capsys):
    flags = "--schemes independent random_min_max sandwich_distill --rates 1 .5"
    short = "--epochs 1 --train-examples 64 --seeds 0 1"
    args = [*flags.split(), *short.split(), "--workdir", str(tmp_path)]
    assert main(args) == 0
    found = numbers(tmp_path)["schemes"]
    assert list(found) == ["independent", "random_min_max", "sandwich_distill"]
    alone, taught = (
        found[name]["0.5"]["values"] for name in ("independent", "sandwich_distill")
    )
    first, second = (x - y for x, y in zip(taught, alone, strict=True))
    # Of two numbers the deviation is their distance by the root of two.
    error = pytest.approx(abs(first - second) / 2)
    assert found["sandwich_distill"]["0.5"]["error"] == error
    assert "accuracy r1 " in capsys.readouterr().out
    assert (tmp_path / "schemes.png").read_bytes().startswith(b"\x89PNG")
    assert len((tmp_path / "results.md").read_text().splitlines()) == 2 + 3 + 2


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("--schedule static", "--schedule is up to the comparison. Choose --schemes"),
        ("--num-random 2", "--num-random is up to the comparison"),
        ("--seed 3", "--seed is up to the comparison. Give --seeds"),
        ("--no-resume", "--resume is up to the comparison"),
        ("--rates 1", "at least two --rates"),
        ("--rates 1 1", "once"),
        ("--rates 1 2", "(0, 1]"),
        ("--seeds 0 0", "--seeds to be at least one, none twice, got (0, 0)"),
        ("--seeds -1 0", "from 0 to 2^32 - 1, got -1"),
        ("--schemes static static", "--schemes to be at least one, none twice"),
        ("--schemes sometimes", "invalid choice 'sometimes'"),
        ("--recipe nothing", "there is no recipe 'nothing'"),
        ("--recipe evaluate", "there is no recipe 'evaluate'"),
        ("--units 3", "Unrecognized options: --units, 3"),
        ("--epochs q", "expected a whole number, got 'q'"),
        ("--epochs 0", "--epochs of at least 1, got 0"),
        ("--depth 10", "expected a depth of 9n + 2"),
        ("--distill 2", "--distill from 0 to 1, got 2"),
        ("--rate-weights 1 2", "expected one weight for each of the 4 rates"),
        ("--schemes static --distill .5", "for the scheme sandwich_distill"),
        ("--schemes static --rate-weights 1 2", "it is for the scheme weighted"),
        ("--dataset npz --data-dir nowhere.npz", "nowhere.npz"),
        ("--batch-size 5000", "--batch-size"),
    ],
)
def test_settings_that_do_not_fit_end_with_one_line(
    args, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main(args.split()) == 2
    error = capsys.readouterr().err
    assert message in error, error
    assert error.startswith("error: ") and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_help_is_help(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["--help"])
    assert exit.value.code == 0
    assert "--schemes" in capsys.readouterr().out


def test_the_reason_on_a_screen_without_boxes():
    text = " Bad \n ----- \n  one  \n  two  \n ----- \n see x \n"
    assert reason(text) == "one two"


def test_measurements_besides_have_a_table_of_their_own(tmp_path):
    values = {"independent": {1.0: 0.5}, "static": {1.0: 0.75}}
    runs = []
    for scheme, of in values.items():
        folder = tmp_path / scheme
        folder.mkdir()
        rates = {
            str(rate): {"accuracy": x / 2, "accuracy_2_views": x, "loss": 1.0}
            for rate, x in of.items()
        }
        (folder / "summary.json").write_text(json.dumps({"rates": rates}))
        settings = Settings(workdir=folder)
        member = {"scheme": scheme, "seed": 0, "measured": (1.0,), "folder": folder}
        runs.append(Member(**member, settings=settings))
    assert compare_schedules._further(runs, "accuracy") == ["accuracy_2_views"]
    found = compare_schedules._cells(runs, "accuracy_2_views")
    cell = found["static"][1.0]
    assert (cell.values, cell.difference) == ((0.75,), 0.25)
    # A run of before has nothing of the kind.
    (tmp_path / "static" / "summary.json").write_text(
        json.dumps({"rates": {"1.0": {"accuracy": 0.5}}})
    )
    assert compare_schedules._further(runs, "accuracy") == []
