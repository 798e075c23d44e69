"""`export`: some rates of a network as an artifact that runs without this package."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from ..core.paths import path_names
from ..core.rates import Rate, check_rates
from ..core.run import resolve
from ..sliceable import Sliceable, extract
from . import archive, plain
from .archive import StorageError
from .arrays import check_can_be_saved, write_array
from .exported import Exporter, NotExported
from .manifest import entries, head

PLATFORMS = ("cpu", "cuda", "tpu")
"""What an artifact runs on unless `export` is told otherwise."""

_KNOWN = ("cpu", "cuda", "rocm", "tpu")


def export(
    net: Sliceable,
    rate: Rate | Sequence[float],
    path: str | os.PathLike[str],
    *,
    platforms: Sequence[str] = PLATFORMS,
    free_batch: bool = True,
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes a network at one rate, or at several, as one artifact that runs by itself.

    The file has the form of one of `save`: a zip of JSON, NumPy arrays and StableHLO.
    It has one program a rate, for all the platforms and a batch of any size, names and
    types of its inputs and outputs, and once the weights that the programs read. `load`
    gives `Programs`; ten lines that need JAX, NumPy and flatbuffers alone run it, too,
    see docs/ship.md. The weights of several rates are cut when they are loaded.

    Args:
      net: from `upgrade` or `extract`; of several processes all call, and the first
        writes.
      rate: as `slice_apply` takes it; or a sequence of declared rates, such as
        `net.rates`, of which each gets a program.
      path: of the file to write; folders on the way are made. `~` is expanded.
      platforms: what the programs run on, of "cpu", "cuda", "rocm" and "tpu".
      free_batch: whether the batch may have any size; False fixes it at that of the
        call that `upgrade` saw.
      inputs, outputs: names for the arrays of the call and of its result, in place of
        those of parameters and keys.
      overwrite: whether a file that is there is replaced.

    Returns:
      The path that was written.

    Raises:
      RateError: for a rate that was not declared, or is wider than the network.
      FileExistsError: if something is at the path.
      StorageError: if there is no such program (for one of the platforms, which it
        names; with a batch of any size), or the file cannot be written.
      ValueError: for types or traced values in place of arrays, names that do not fit.
      TypeError: for what is no network.

    Example:
      >>> import tempfile, jax.numpy as jnp, mslice_jax as ms
      >>> def mlp(p, x):
      ...     return jnp.tanh(x @ p["w1"]) @ p["w2"]
      >>> p = {"w1": jnp.ones((3, 16)), "w2": jnp.ones((16, 2))}
      >>> net = ms.upgrade(mlp, p, jnp.ones((1, 3)), rates=(0.5, 1.0))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     half = ms.load(ms.export(net, 0.5, f"{folder}/half.mslice"))
      >>> half, half.inputs["x"].shape, half.outputs["output"].shape
      (Programs(rates=(0.5,), call=(float32[batch,3])), (batch, 3), (batch, 2))
      >>> ms.slice_apply(half, jnp.ones((7, 3)), 0.5).shape
      (7, 2)
    """
    if not isinstance(net, Sliceable):
        raise TypeError(
            "export expects a network from `upgrade` or `extract`; got "
            f"{type(net).__name__}. Of a training state that is state.net."
        )
    where = archive.local_path(path, "export")
    first = jax.process_index() == 0
    if first:
        archive.check_free(where, overwrite=overwrite)
    platforms = _checked(platforms)
    small, rates = _narrowed(net, rate)
    leaves = jax.tree.leaves(small.variables)
    paths = plain.paths_of(small.variables)
    for name, leaf in zip(path_names(paths), leaves, strict=True):
        check_can_be_saved(name, leaf, "export")
    if not first:
        return where
    try:
        exporter = Exporter(small, rates, free_batch=free_batch)
        if free_batch and exporter.why_fixed:
            raise NotExported(
                f"its batch cannot be of any size: {exporter.why_fixed}. Pass "
                "free_batch=False for one of the size that `upgrade` saw"
            )
        programs = _programs(exporter, platforms)
    except NotExported as error:
        raise StorageError(f"cannot export {where.name}: {error}.") from error
    common = exporter.common(platforms)
    _rename(common["arrays"], inputs, "inputs")
    cuts = exporter.cuts(platforms)
    # The leaves that no program reads stay behind.
    read = sorted({i for about, _ in programs for i in about["leaves"]})
    place = {old: new for new, old in enumerate(read)}
    arrays = entries([paths[i] for i in read], [leaves[i] for i in read])
    members: dict[str, bytes] = {}
    common["each"] = []
    for i, ((about, content), cut) in enumerate(zip(programs, cuts, strict=True)):
        _rename(about["outputs"], outputs, "outputs")
        about["leaves"] = [place[leaf] for leaf in about["leaves"]]
        about["file"] = f"programs/{i}.stablehlo"
        members[about["file"]] = content
        if cut is not None:
            about["cut"] = f"programs/{i}.cut.stablehlo"
            members[about["cut"]] = cut
        common["each"].append(about)
    manifest = {
        **head(version=2),
        "part": plain.part_to_json(small.part),
        "variables": {"leaves": arrays},
        "programs": common,
    }

    def fill(writer: archive.Writer) -> None:
        writer.manifest(manifest)
        for about, i in zip(arrays, read, strict=True):
            write_array(writer, about["file"], leaves[i])
        for file, content in members.items():
            with writer.member(file) as member:
                member.write(content)

    archive.write(where, fill, overwrite=overwrite)
    return where


def _narrowed(net: Sliceable, rate: Any) -> tuple[Sliceable, list[float | None]]:
    """The widest of the networks that are asked for, and the rates of all."""
    if not isinstance(rate, (list, tuple)):
        small = extract(net, rate)
        return small, [small.part.rate]
    rates = check_rates(rate)
    for each in rates:  # all of them before work starts
        resolve(net.definition, each, net.part)
    return extract(net, rates[-1]), list(rates)


def _checked(platforms: Any) -> list[str]:
    given = [platforms] if isinstance(platforms, str) else list(platforms)
    if not given or not set(given) <= set(_KNOWN) or len(set(given)) < len(given):
        raise ValueError(
            f"platforms are some of {', '.join(_KNOWN)}, each once; got {platforms!r}."
        )
    return given


def _programs(exporter: Exporter, platforms: Sequence[str]) -> Any:
    """The programs; an error says for which of the platforms there is none, and why."""
    try:
        return exporter.programs(platforms)
    except NotExported as error:
        failed: dict[str, str] = {}
        for platform in platforms:
            try:
                exporter.programs([platform])
            except NotExported as alone:
                failed[platform] = str(alone)
        named = ", ".join(failed or platforms)
        why = next(iter(failed.values()), str(error))
        rest = tuple(p for p in platforms if p not in failed)
        hint = f". Pass platforms={rest}" if failed and rest else ""
        raise NotExported(f"there is no program for {named} ({why}){hint}") from error


def _rename(arrays: list[dict[str, Any]], names: Any, what: str) -> None:
    """Gives arrays of the manifest the names that the user chose."""
    if names is None:
        return
    before = [each["name"] for each in arrays]
    given = [names] if isinstance(names, str) else list(names)
    if len(given) != len(before) or len(set(given)) < len(given):
        raise ValueError(
            f"{what} takes a name for each of {before}, no two alike; got {names!r}."
        )
    for each, name in zip(arrays, given, strict=True):
        each["name"] = name
