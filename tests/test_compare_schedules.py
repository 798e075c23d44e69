"""The comparison of schemes: its arithmetic, its runs, and what it refuses."""

import dataclasses
import json
import math
import re

import pytest

from experiments import compare_schedules
from experiments.compare_schedules import main
from experiments.comparison import outcome, results
from experiments.comparison.flags import reason
from experiments.comparison.schemes import (
    SCHEMES,
    Member,
    as_scheme,
    changes,
    ends_first,
)
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

    passes, cost = {"independent": 1, "static": 2}, {"independent": 1, "static": 1.125}
    table = outcome.rows(found, passes, cost, scale=100)
    assert table == [
        ["scheme", "rates a step", "FLOPs", "r = 1", "r = 0.5"],
        ["independent", "1", "1.00", "80.00 ± 10.00", "60.00 ± 0.00"],
        ["static", "2", "1.12", "82.00 ± 11.14 (+2.00 ± 1.15)"]
        + ["50.00 ± 10.00 (-10.00 ± 5.77)"],
    ]
    assert outcome.markdown(table, "Below.").splitlines()[1:3] == [
        "| --- | ---: | ---: | ---: | ---: |",
        "| independent | 1 | 1.00 | 80.00 ± 10.00 | 60.00 ± 0.00 |",
    ]


def test_one_seed_has_no_deviation():
    found = outcome.cells({"independent": {1.0: [3.0]}, "static": {1.0: [4.5]}})
    cell = found["static"][1.0]
    assert (cell.deviation, cell.difference, cell.error) == (None, 1.5, None)
    cost = {"independent": 1.0, "static": math.nan}
    table = outcome.rows(found, {"independent": 1, "static": 2}, cost)
    assert table[2] == ["static", "2", "", "4.50 (+1.50)"]
    alone = outcome.cells({"static": {1.0: [4.5, 5.5]}})
    assert alone["static"][1.0].difference is None


def settled(text, given, rates=RATES):
    """The settings of a scheme's runs."""
    return dataclasses.replace(given, **changes(as_scheme(text), rates, given))


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
    of = vars(settled(scheme, Settings()))
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


def test_a_scheme_keeps_its_own_flags():
    given = Settings(rate_weights=(1, 2, 3, 4), distill=0.7, temperature=2.0)
    assert settled("weighted --rate-weights ...", given).rate_weights == (1, 2, 3, 4)
    taught = settled("sandwich_distill --distill ...", given)
    assert (taught.distill, taught.temperature) == (0.7, 2.0)
    assert settled("independent", Settings(), (0.5,)).rates == (0.5,)
    assert settled("random --num-random 3", Settings(num_random=3)).num_random == 3
    more = Settings(rates=(1.0, 0.875, 0.5))
    assert settled("static --rates ...", more, (1.0, 0.5)).rates == (1.0, 0.875, 0.5)
    assert settled("sandwich --rates ...", more, (1.0, 0.5)).rates == more.rates
    with pytest.raises(ValueError, match="those of the table, got none of 0.25"):
        settled("static --rates ...", more, (1.0, 0.25))
    assert ends_first((0.5, 1.0)) == (0.25, 0.5)
    assert set(compare_schedules.Flags().schemes) == set(SCHEMES)


def test_folders_of_schemes():
    scheme = as_scheme("static --distill 0.3 --epochs 3")
    assert scheme.folder == "static-distill-0.3-epochs-3"
    alone = as_scheme("independent --lr .1")
    assert alone.of_rate(0.5) == "independent-0.5-lr-.1"
    assert as_scheme("independent").of_rate(1.0) == "independent-1.0"


class Killed(BaseException):
    """Ends the process as SIGKILL does: nothing is saved on the way."""


LATE = "static --epochs 2 --distill .5 --distill-from 1 --loss-weights 1 2"
ARGS = "--rates 1 .5 --epochs 1 --train-examples 70 --batch-size 64"
ARGS = ["--schemes", "independent", LATE, *ARGS.split(), "--max-test-examples", "80"]


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
        if len(steps) == 4:
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
    both = (1.0, 0.5)
    assert before == [((1.0,), 1), ((0.5,), 1), (both, 1), (both, 2)]
    assert unfinished
    assert after == [(both, 2)]
    late = "static-epochs-2-distill-.5-distill-from-1-loss-weights-1-2"
    assert "Resumed at step 1" in (folder / late / "seed-0/log.txt").read_text()

    found = numbers(folder)
    for scheme, run in ((LATE, late), ("independent", "independent-0.5")):
        summary = json.loads((folder / run / "seed-0/summary.json").read_text())
        cell = found["schemes"][scheme]["0.5"]
        assert cell["values"] == [summary["rates"]["0.5"]["accuracy"]]
        assert summary["examples"]["0.5"] == 64 * (2 if scheme == LATE else 1)
    assert found["schemes"][LATE]["0.5"]["difference"] == pytest.approx(
        found["schemes"][LATE]["0.5"]["mean"]
        - found["schemes"]["independent"]["0.5"]["mean"]
    )
    # Both rates in twice the steps: twice what the separate networks cost together.
    flops = found["training_flops"]
    assert flops[LATE] == pytest.approx(2 * flops["independent"])
    assert (folder / "schemes.png").read_bytes().startswith(b"\x89PNG")
    lines = (folder / "results.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in lines[:4]] == [
        "| scheme", "| ---", "| independent", f"| {LATE}"
    ]  # fmt: skip

    # Group by group, after each epoch once.
    scales = (folder / late / "seed-0/norm_scales.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in scales] == [1, 2]
    assert (folder / late / "seed-0/norm_scales.png").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--epochs", "3"], "--epochs was 1 and is 3"),
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


def test_flags_newer_than_a_comparison_do_not_stop_it(tmp_path):
    (tmp_path / "settings.json").write_text('{"recipe": "cifar_vgg", "lr": 0.1}')
    now = {"recipe": "cifar_vgg", "lr": 0.1, "flag_of_today": 3}
    compare_schedules.check_same(tmp_path, now)
    with pytest.raises(ValueError, match="--lr was 0.1 and is 0.2"):
        compare_schedules.check_same(tmp_path, {**now, "lr": 0.2})


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
    text = (tmp_path / "results.md").read_text()
    assert len(text.splitlines()) == 2 * (2 + 3 + 2) + 1 and "loss, nats" in text


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("--schedule static", "--schedule is up to the comparison. Choose --schemes"),
        ("--num-random 2", "--num-random belongs to a scheme. Write it behind its"),
        ("--seed 3", "--seed is up to the comparison. Give --seeds"),
        ("--no-resume", "--resume is up to the comparison"),
        ("--rates 1", "at least two --rates"),
        ("--rates 1 1", "once"),
        ("--rates 1 2", "(0, 1]"),
        ("--seeds 0 0", "--seeds to be at least one, none twice, got (0, 0)"),
        ("--seeds -1 0", "from 0 to 2^32 - 1, got -1"),
        ("--schemes static static", "--schemes to be at least one, none twice"),
        ("--schemes sometimes", "there is no scheme 'sometimes'. --schemes takes"),
        (["--schemes", "static --seed 1"], "static --seed 1: --seed is up to the"),
        (["--schemes", "static --units 1"], "Unrecognized options: --units, 1"),
        (["--schemes", "static --lr .1", "static -lr .1"], "each of --schemes once"),
        (["--schemes", "independent --distill .5"], "there is only one"),
        (["--schemes", "static --loss-weights 1 2"], "each of the 4 rates, got (1.0"),
        (["--schemes", "static --rates 1 .5"], "got none of 0.25, 0.75"),
        ("--recipe nothing", "there is no recipe 'nothing'"),
        ("--recipe evaluate", "there is no recipe 'evaluate'"),
        ("--units 3", "Unrecognized options: --units, 3"),
        ("--epochs q", "expected a whole number, got 'q'"),
        ("--epochs 0", "--epochs of at least 1, got 0"),
        ("--depth 10", "expected a depth of 9n + 2"),
        (["--schemes", "static --distill 2"], "--distill from 0 to 1, got 2"),
        (
            ["--schemes", "weighted --rate-weights 1 2"],
            "expected one weight for each of the 4 rates",
        ),
        ("--distill .5", "--distill belongs to a scheme"),
        ("--dataset npz --data-dir nowhere.npz", "nowhere.npz"),
        ("--batch-size 5000", "--batch-size"),
    ],
)
def test_settings_that_do_not_fit_end_with_one_line(
    args, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main(args.split() if isinstance(args, str) else args) == 2
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
    assert results.further(runs, "accuracy") == [
        "accuracy_2_views", "loss"
    ]  # fmt: skip
    found = results.cells(runs, "accuracy_2_views")
    cell = found["static"][1.0]
    assert (cell.values, cell.difference) == ((0.75,), 0.25)
    # A run of before has nothing of the kind.
    (tmp_path / "static" / "summary.json").write_text(
        json.dumps({"rates": {"1.0": {"accuracy": 0.5}}})
    )
    assert results.further(runs, "accuracy") == []
