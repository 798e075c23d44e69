"""The command line of the server."""

import argparse
import difflib
import json
import os
from collections.abc import Sequence
from typing import Any, NoReturn

POLICIES = ("elastic", "latency-first", "window", "slackfit")


def options(args: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line; what is no option of it ends the process with code 2."""
    parser = _Parser(
        prog="python -m mslice_jax.serve",
        description="Serve a network whose width follows the load, by the Open "
        "Inference Protocol v2 over HTTP.",
        allow_abbrev=False,
    )
    _network(parser)
    _load(parser)
    _http(parser)
    found, unknown = parser.parse_known_args(args)
    if unknown:
        known = list(parser._option_string_actions)
        near = difflib.get_close_matches(unknown[0].split("=")[0], known, 1)
        meant = f" (is it {near[0]}?)" if near else ""
        parser.error(f"there is no {unknown[0]}{meant}")
    if found.token is None and (word := os.environ.get("MSLICE_TOKEN")):
        try:
            found.token = header_word(word)
        except ValueError:
            parser.error(f"MSLICE_TOKEN: invalid {header_word.__name__}")
    if found.table is not None and found.write_table is not None:
        parser.error("--write-table keeps what is measured, and --table measures none")
    return found


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong; the usage would push it off the screen."""

    def error(self, message: str) -> NoReturn:
        text = " ".join(message.split())
        self.exit(2, f"error: {text}. --help lists the options.\n")


def _network(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("network")
    which = group.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--checkpoint",
        metavar="PATH",
        help="a file of mslice_jax.save, or a folder with a network.mslice, such as "
        "the workdir of a recipe",
    )
    which.add_argument(
        "--demo", action="store_true", help="train a small network of digits first"
    )
    model = group.add_mutually_exclusive_group()
    model.add_argument(
        "--model",
        metavar="MODULE:NAME",
        help="the model that upgrade was given; without it the programs of the file",
    )
    model.add_argument(
        "--model-from",
        metavar="MODULE:FUNCTION",
        help="a function that takes PATH and returns the model, such as "
        "experiments.evaluate:model for the workdir of a recipe",
    )
    group.add_argument(
        "--name", type=name_of_model, default="default", help="of the model (default)"
    )
    group.add_argument(
        "--rates", type=_floats, metavar="R,R", help="serve these alone, not all"
    )
    group.add_argument(
        "--batches",
        type=_ints,
        default=(1, 2, 4, 8, 16, 32),
        metavar="N,N",
        help="batch buckets, in rows (1,2,4,8,16,32)",
    )
    group.add_argument(
        "--lengths", type=_ints, metavar="N,N", help="length buckets of a free axis 1"
    )
    group.add_argument("--mask", metavar="NAME", help="the input that is the mask")
    group.add_argument("--count", metavar="NAME", help="the input with the lengths")
    group.add_argument("--call", type=_json, metavar="JSON", help="keywords of it")
    group.add_argument("--input-names", type=_names, metavar="A,B")
    group.add_argument("--output-names", type=_names, metavar="A,B")
    group.add_argument(
        "--finite", action="store_true", help="refuse NaN and infinity in inputs"
    )
    group.add_argument(
        "--memory-mb", type=_positive, metavar="MB", help="limit of narrow weights kept"
    )
    group.add_argument(
        "--accuracy",
        metavar="FILE",
        help='JSON, {"0.5": 0.93, ...}, or the summary.json of a recipe, which is '
        "found by itself beside the checkpoint",
    )


def _load(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("load")
    group.add_argument(
        "--slo-ms",
        type=_positive,
        default=100.0,
        metavar="MS",
        help="T: within which a request is due that brings no timeout (100)",
    )
    group.add_argument("--policy", choices=POLICIES, default="elastic")
    group.add_argument(
        "--margin-ms",
        type=_not_negative,
        metavar="MS",
        help="what an answer needs from here to the client (2, at most T/20)",
    )
    group.add_argument(
        "--queue", type=_count, default=1000, metavar="N", help="requests that may wait"
    )
    group.add_argument(
        "--table", metavar="FILE", help="a latency table, in place of measuring"
    )
    group.add_argument("--write-table", metavar="FILE", help="keep what was measured")
    group.add_argument(
        "--repeats", type=_count, default=20, metavar="N", help="runs of each program"
    )


def _http(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("HTTP")
    group.add_argument(
        "--host", type=address, default="127.0.0.1", help="address (127.0.0.1)"
    )
    group.add_argument("--port", type=_port, default=8000, help="8000; 0 takes any")
    group.add_argument(
        "--token",
        type=header_word,
        help="that requests have to bring; also in MSLICE_TOKEN",
    )
    group.add_argument(
        "--body-mb",
        type=_positive,
        default=32.0,
        metavar="MB",
        help="of a body (32)",
    )
    group.add_argument(
        "--held-mb",
        type=_positive,
        default=512.0,
        metavar="MB",
        help="of all bodies that wait (512)",
    )
    group.add_argument(
        "--drain-s",
        type=_positive,
        default=30.0,
        metavar="S",
        help="how long the queue has to empty at the end (30)",
    )


def _floats(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def _ints(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


def _json(text: str) -> Any:
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError
    return found


def name_of_model(text: str) -> str:
    """The text, if a model can have it as its name; otherwise raises ValueError."""
    # It is a part of paths, where "." is nothing and "stats" the statistics of all.
    if not text.isprintable() or "/" in text or text in ("", ".", "..", "stats"):
        raise ValueError
    return text


def address(text: str) -> str:
    """The text, if it may be an address; otherwise raises ValueError."""
    if not text:  # would be every address of the machine
        raise ValueError
    return text


def header_word(text: str) -> str:
    """The text, if it can be a token; otherwise raises ValueError."""
    # What a header can carry.
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError
    return text


def _positive(text: str) -> float:
    if not 0 < (found := float(text)) < 1e9:
        raise ValueError
    return found


def _not_negative(text: str) -> float:
    if not 0 <= (found := float(text)) < 1e9:
        raise ValueError
    return found


def _count(text: str) -> int:
    if (found := int(text)) < 1:
        raise ValueError
    return found


def _port(text: str) -> int:
    if not 0 <= (found := int(text)) < 65536:
        raise ValueError
    return found


for _type, _called in (
    (_floats, "numbers with commas"),
    (_ints, "integers with commas"),
    (_json, "JSON object"),
    (name_of_model, "name of a model"),
    (address, "address"),
    (header_word, "word of ASCII"),
    (_positive, "number above 0"),
    (_not_negative, "number from 0"),
    (_count, "integer above 0"),
    (_port, "port"),
):
    _type.__name__ = _called  # argparse says it: invalid number above 0 value: '-1'
