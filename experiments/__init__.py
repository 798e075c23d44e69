"""Runnable recipes, one a file: ``python -m experiments.cifar_resnet``."""

import ctypes
import os

_M_ARENA_MAX = -8  # an option of `mallopt`, see its manual page


def _use_one_arena() -> None:
    """Let all threads of the process take memory from one place, where glibc allows it.

    On CPU XLA takes the memory of a program in one of its threads. In an arena of a
    thread glibc has no room for blocks of more than 64 MB: it asks the operating system
    anew for each, whatever `mslice_jax.cpu.memory.keep_freed` says, and gets it page by
    page. Twenty steps of the speed run at half the width take 96 thousand page faults
    with it and 2.2 million without, start included, and 24 and 34 s of processor time.

    It counts only before NumPy and JAX start their threads, so it stands here.
    """
    mallopt = None
    if os.name == "posix":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)


_use_one_arena()
