"""The user's line of an equation, from made-up frames: innermost first."""

import os
import sysconfig
from typing import NamedTuple

import pytest

import mslice_jax
from mslice_jax.core.source import user_line

PACKAGE = os.path.dirname(mslice_jax.__file__)
SITE = "/opt/lib/python3/site-packages"


class Frame(NamedTuple):
    file_name: str
    line_num: int
    function_name: str


class Info(NamedTuple):
    """The source of an equation; `traceback` is one as JAX keeps it, or None."""

    traceback: "Info | None" = None
    frames: tuple[Frame, ...] = ()


def info(*files):
    frames = tuple(Frame(file, 10 + i, "f") for i, file in enumerate(files))
    return Info(traceback=Info(frames=frames))


MINE, OTHER = "/home/me/net.py", "/home/me/train.py"
JIT = f"{SITE}/jax/_src/pjit.py"
CASES = {
    "the innermost of mine": ([info(MINE, OTHER)], "net.py:10 (f)"),
    "not JAX's": ([info(f"{SITE}/jax/_src/lax.py", MINE)], "net.py:11 (f)"),
    "not this library's": ([info(f"{PACKAGE}/core/run.py", MINE)], "net.py:11 (f)"),
    "nor its adapters'": ([info(f"{PACKAGE}/adapters/x.py", MINE)], "net.py:11 (f)"),
    "but the zoo's": ([info(f"{PACKAGE}/models/vgg.py", MINE)], "vgg.py:10 (f)"),
    "beside the zoo": ([info(f"{PACKAGE}/models.py", MINE)], "net.py:11 (f)"),
    "not Python's": (
        [info(f"{sysconfig.get_path('stdlib')}/functools.py", MINE)], "net.py:11 (f)"
    ),
    "not made from text": ([info("<string>", MINE)], "net.py:11 (f)"),
    "not of a system package": (
        [info("/usr/lib/python3/dist-packages/flax/linen.py", MINE)], "net.py:11 (f)"
    ),
    "an installed network": (
        [info(f"{SITE}/flax/linen.py", f"{SITE}/nets/vit.py", f"{SITE}/nets/run.py")],
        "vit.py:11 (f)",
    ),
    "mine before an installed network": (
        [info(f"{SITE}/nets/vit.py"), info(OTHER)], "train.py:10 (f)"
    ),
    "layers alone": ([info(f"{SITE}/flax/linen.py", f"{SITE}/keras/layer.py")], ""),
    "of the call around it": ([info(JIT), info(OTHER)], "train.py:10 (f)"),
    # What is jitted is traced once: beyond JAX's frame stands whoever called it first.
    "not of an earlier call": ([info(JIT, MINE), info(OTHER)], "train.py:10 (f)"),
    "outermost, there is but one call": ([info(JIT, MINE)], "net.py:11 (f)"),
    "outermost of two": ([info(JIT, MINE), info(JIT, OTHER)], "train.py:11 (f)"),
    "mine within a jitted call": ([info(MINE, JIT), info(OTHER)], "net.py:10 (f)"),
    "nothing is known": ([Info(), Info(Info())], ""),
    "nothing is there": ([], ""),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_line(name):
    infos, expected = CASES[name]
    assert user_line(infos) == expected
