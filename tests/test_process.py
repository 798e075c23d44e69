"""Settings of the process of experiments: freed memory and programs are kept."""

import subprocess
import sys

import pytest

# Touches 64 MB twice, and prints the number of page faults of the second time.
TOUCH = """
import resource, sys
from mslice_jax.cpu import memory

if "keep" in sys.argv:
    memory.keep_freed()
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(b"1") * 2**26
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults)
"""


# Calls a program that needs 144 MB on the way, in a thread of XLA's, and prints the
# number of page faults of the last call. (The first ones find no block that fits: glibc
# asks for a little more than it needs, to align it, and gives the rest back.)
CALL = """
import resource, sys
if "experiments" in sys.argv:
    import experiments
import jax, jax.numpy as jnp
from mslice_jax.cpu import memory

memory.keep_freed()
program = jax.jit(lambda x: jnp.tanh(x[:, None] * x[None]) @ x)
x = jnp.ones(6000)
for _ in range(40):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    program(x).block_until_ready()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults)
"""


# The same in a thread, which has heaps of its own: two blocks of 40 MB are in two.
IN_A_THREAD = """
import ctypes, resource, sys, threading
from mslice_jax.cpu import memory

if "keep" in sys.argv:
    memory.keep_freed()
c = ctypes.CDLL(None)
c.malloc.restype, size = ctypes.c_void_p, 40 * 2**20

def touch():
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        blocks = [ctypes.c_void_p(c.malloc(size)) for _ in range(2)]
        for block in blocks:
            ctypes.memset(block, 1, size)
        for block in reversed(blocks):
            c.free(block)
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    print(faults)

thread = threading.Thread(target=touch)
thread.start()
thread.join()
"""


def faults(*args, script=TOUCH):
    command = [sys.executable, "-c", script, *args]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_freed_memory_is_kept():
    if faults() < 1000:
        pytest.skip("the system does not hand out memory in pages of 4 kB here")
    assert faults("keep") < 1000


def test_memory_of_programs_is_kept_in_commands():
    if faults(script=CALL) < 10_000:
        pytest.skip("the C library keeps large blocks of threads here")
    assert faults("experiments", script=CALL) < 1000


def test_memory_that_a_thread_freed_is_kept():
    if faults(script=IN_A_THREAD) < 1000:
        pytest.skip("the system does not hand out memory in pages of 4 kB here")
    assert faults("keep", script=IN_A_THREAD) < 1000


@pytest.mark.parametrize("told", [None, "elsewhere"])
def test_compiled_programs_are_kept_in_the_users_cache(told, tmp_path):
    ask = (
        "import jax; from experiments.process import keep_compiled_programs as keep;"
        "keep(); print(jax.config.jax_compilation_cache_dir)"
    )
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    if told:
        environment["JAX_COMPILATION_CACHE_DIR"] = told
    done = subprocess.run(
        [sys.executable, "-c", ask], env=environment, capture_output=True, text=True
    )
    expected = told or str(tmp_path / "mslice_jax" / "compiled")
    assert done.stdout.strip() == expected, done.stderr


@pytest.mark.parametrize("home", ["/dev/null", None])
def test_without_a_home_programs_are_not_kept_and_nothing_breaks(home):
    ask = """
import sys
from pathlib import Path
import jax
from experiments.process import keep_compiled_programs

def nobody():
    raise RuntimeError("Could not determine home directory.")

if sys.argv[1] == "None":
    Path.home = nobody
keep_compiled_programs()
print(jax.config.jax_compilation_cache_dir)
"""
    environment = {"HOME": "/dev/null"}  # no folder can be made in there
    done = subprocess.run(
        [sys.executable, "-c", ask, str(home)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "None", done.stderr
