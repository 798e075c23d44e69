"""`export`: some rates of a network as an artifact that runs without this package.

StableHLO is the form of its own; ONNX and TensorFlow take one rate each.
"""

import os
from collections.abc import Callable, Sequence
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
from .onnx import onnx_model
from .saved_model import write_saved_model

PLATFORMS = ("cpu", "cuda", "tpu")
"""What an artifact runs on unless `export` is told otherwise."""

_FORMS = ("stablehlo", "onnx", "tensorflow")
_KNOWN = ("cpu", "cuda", "rocm", "tpu")


def export(
    net: Sliceable,
    rate: Rate | Sequence[float],
    path: str | os.PathLike[str],
    *,
    to: str = "stablehlo",
    platforms: Sequence[str] = PLATFORMS,
    free_batch: bool = True,
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
    overwrite: bool = False,
    check: bool = True,
) -> Path:
    """Writes a network at one rate, or at several, as one artifact that runs by itself.

    The file has the form of one of `save`: a zip of JSON, NumPy arrays and StableHLO.
    It has one program a rate, for all the platforms and a batch of any size, names and
    types of its inputs and outputs, and once the weights that the programs read. `load`
    gives `Programs`; ten lines that need JAX, NumPy and flatbuffers alone run it, too,
    see docs/ship.md. The weights of several rates are cut when they are loaded.

    With `to` the artifact is an ONNX model, or the folder of a SavedModel, of one rate.

    Args:
      net: from `upgrade` or `extract`; of several processes all call, and the first
        writes.
      rate: as `slice_apply` takes it; or a sequence of declared rates, such as
        `net.rates`, of which each gets a program.
      path: of the file to write; folders on the way are made. `~` is expanded.
      to: "stablehlo"; "onnx" by jax2onnx (extra `onnx`); "tensorflow" by jax2tf (extra
        `tf`).
      platforms: what the programs run on, of "cpu", "cuda", "rocm" and "tpu"; an ONNX
        model is for all.
      free_batch: whether the batch may have any size; False fixes it at that of the
        call that `upgrade` saw.
      inputs, outputs: names for the arrays of the call and of its result, in place of
        those of parameters and keys.
      overwrite: whether a file that is there is replaced; a folder never is.
      check: whether onnxruntime runs an ONNX model on a made-up batch, and its answers
        are compared; in bfloat16 it cannot.

    Returns:
      The path that was written.

    Raises:
      RateError: for a rate that was not declared, or is wider than the network.
      FileExistsError: if something is at the path.
      StorageError: if there is no such program (for one of the platforms, which it
        names; with a batch of any size), an ONNX model is not the same function, or the
        file cannot be written.
      ValueError: for types or traced values in place of arrays, names that do not fit.
      TypeError: for what is no network.
      ImportError: if the package of an extra is not there.

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
    if to not in _FORMS:
        raise ValueError(f"export writes to {', '.join(_FORMS)}; got to={to!r}.")
    where = archive.local_path(path, "export")
    first = jax.process_index() == 0
    if first and to == "tensorflow":
        archive.check_no_folder(where)
    elif first:
        archive.check_free(where, overwrite=overwrite)
    platforms = _checked(platforms)
    small, rates = _narrowed(net, rate)
    if to != "stablehlo" and len(rates) > 1:
        raise ValueError(f"to={to!r} takes one rate; got {rate!r}.")
    leaves = jax.tree.leaves(small.variables)
    names = path_names(plain.paths_of(small.variables))
    for name, leaf in zip(names, leaves, strict=True):
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
        given = _named(exporter.inputs, inputs, "inputs")
        if to == "stablehlo":
            write = _stablehlo(exporter, small, platforms, given, outputs)
            archive.write(where, write, overwrite=overwrite)
            return where
        (body,) = exporter.bodies
        weights = [leaves[i] for i in body.taken]
        results = _named(body.outputs, outputs, "outputs")
        if to == "onnx":
            model = onnx_model(exporter, weights, given, results, check=check)
            archive.write_file(where, lambda f: f.write(model), overwrite=overwrite)
        else:
            archive.write_folder(
                where,
                lambda folder: write_saved_model(
                    folder, exporter, weights, given, results, platforms
                ),
            )
    except NotExported as error:
        raise StorageError(f"cannot export {where.name}: {error}.") from error
    return where


def _stablehlo(
    exporter: Exporter,
    small: Sliceable,
    platforms: Sequence[str],
    inputs: Sequence[str],
    outputs: Sequence[str] | None,
) -> Callable[[archive.Writer], None]:
    """What writes the members of a file."""
    programs, cuts = _programs(exporter, platforms), exporter.cuts(platforms)
    common = exporter.common(platforms)
    for each, name in zip(common["arrays"], inputs, strict=True):
        each["name"] = name
    # The leaves that no program reads stay behind.
    read = sorted({i for about, _ in programs for i in about["leaves"]})
    place = {old: new for new, old in enumerate(read)}
    paths, leaves = plain.paths_of(small.variables), jax.tree.leaves(small.variables)
    arrays = entries([paths[i] for i in read], [leaves[i] for i in read])
    members: dict[str, bytes] = {}
    common["each"] = []
    for i, ((about, content), cut) in enumerate(zip(programs, cuts, strict=True)):
        before = [each["name"] for each in about["outputs"]]
        for each, name in zip(
            about["outputs"], _named(before, outputs, "outputs"), strict=True
        ):
            each["name"] = name
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

    def write(writer: archive.Writer) -> None:
        writer.manifest(manifest)
        for about, i in zip(arrays, read, strict=True):
            write_array(writer, about["file"], leaves[i])
        for file, content in members.items():
            with writer.member(file) as member:
                member.write(content)

    return write


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


def _named(names: Sequence[str], chosen: Any, what: str) -> list[str]:
    """The names that the user chose, or those that there are."""
    if chosen is None:
        return list(names)
    given = [chosen] if isinstance(chosen, str) else list(chosen)
    if len(given) != len(names) or len(set(given)) < len(given):
        raise ValueError(
            f"{what} takes a name for each of {list(names)}, no two alike; got "
            f"{chosen!r}."
        )
    return given
