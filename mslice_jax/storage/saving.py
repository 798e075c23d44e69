"""`save` and `load`: a network in one file, with or without its model."""

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
from jax.experimental import multihost_utils

from ..adapters import ADAPTERS, adapter_of, adapter_of_network
from ..core.call import Call, keywords, plain_type
from ..core.definition import Definition
from ..core.paths import path_names
from ..core.plan import WidthPlan
from ..core.run import full_types
from ..sliceable import Sliceable
from . import archive, plain
from .archive import Reader, StorageError, damaged
from .arrays import check_can_be_saved, read_array, write_array
from .exported import Exporter, NotExported, axes_of
from .manifest import entries, head
from .programs import Programs, Saved, read_programs

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
"""The platforms that programs are saved for, where they can be for all of them."""


class SaveWarning(UserWarning):
    """A network was saved without the programs that run where the model is not."""


def save(
    net: Sliceable,
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    programs: bool = True,
) -> Path:
    """Writes a network into one file.

    All of it is there: weights, plan, settings, the order of the units, the norms of
    every rate, what `calibrate` measured; of an extracted network its narrow part. The
    model itself is code, and is not; programs exported for every rate stand in for it
    where it is not at hand, see `load`. The file is a zip of JSON, NumPy arrays and
    StableHLO; it takes its name when it is complete, so that a process that is killed
    leaves no half of one.

    Args:
      net: from `upgrade`, `extract`, or a training state; of several processes all
        call, and the first writes.
      path: of the file to write; folders on the way are made. `~` is expanded.
      overwrite: whether a file that is there is replaced.
      programs: whether the programs are exported, for every declared rate and the call
        that `upgrade` saw, with a batch of any size where JAX can export that.

    Returns:
      The path that was written.

    Raises:
      FileExistsError: if something is at the path.
      StorageError: if the file cannot be written.
      ValueError: for types or traced values in place of arrays.
      TypeError: for what is no network.

    Warns:
      SaveWarning: if no program can stand for the call; the file then needs the model.

    Example:
      >>> import tempfile, jax.numpy as jnp, mslice_jax as ms
      >>> def mlp(p, x):
      ...     return jnp.tanh(x @ p["w1"]) @ p["w2"]
      >>> p = {"w1": jnp.ones((3, 16)), "w2": jnp.ones((16, 2))}
      >>> net = ms.upgrade(mlp, p, jnp.ones((1, 3)), rates=(0.5, 1.0))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = ms.save(ms.extract(net, 0.5), f"{folder}/half.mslice")
      ...     whole, alone = ms.load(path, model=mlp), ms.load(path)
      >>> whole.rate, ms.slice_apply(alone, jnp.ones((7, 3)), 0.5).shape
      (0.5, (7, 2))
    """
    if not isinstance(net, Sliceable):
        raise TypeError(
            "save expects a network from `upgrade` or `extract`; got "
            f"{type(net).__name__}. Of a training state that is state.net."
        )
    where = archive.local_path(path, "save")
    first = jax.process_index() == 0
    if first:
        archive.check_free(where, overwrite=overwrite)
    leaves = jax.tree.leaves(net.variables)
    paths = plain.paths_of(net.variables)
    for name, leaf in zip(path_names(paths), leaves, strict=True):
        check_can_be_saved(name, leaf)
    adapter = adapter_of_network(net)
    common: Any = "they were left out: save(..., programs=False)"
    each: list[Any] = []
    if programs and first:
        try:
            common, each = _programs_of(net)
        except NotExported as error:
            common = str(error)
            warnings.warn(
                f"saved without programs, so it takes the model to load {where}: "
                f"{common}",
                SaveWarning,
                stacklevel=2,
            )
    if isinstance(common, dict):
        common["each"] = [
            {**about, "file": f"programs/{i}.stablehlo"}
            for i, (about, _) in enumerate(each)
        ]
    arrays = entries(paths, leaves)
    manifest = {
        **head(version=1),
        "kind": adapter.name,
        "facts": adapter.facts(net.definition.function),
        "part": plain.part_to_json(net.part),
        "definition": plain.definition_to_json(net.definition),
        "variables": {
            "tree": plain.maybe(
                lambda: plain.tree_to_json(net.variables, lambda _: None)
            ),
            "leaves": arrays,
        },
        "programs": common,
    }

    def fill(writer: archive.Writer) -> None:
        writer.manifest(manifest)
        for about, leaf in zip(arrays, leaves, strict=True):
            write_array(writer, about["file"], leaf)
        for i, (_, content) in enumerate(each):
            with writer.member(f"programs/{i}.stablehlo") as member:
                member.write(content)

    if first:
        archive.write(where, fill, overwrite=overwrite)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"saved {where}")
    return where


def load(
    path: str | os.PathLike[str],
    model: Any = None,
    *,
    variables: Any = None,
    inputs: Sequence[Any] | None = None,
    call: Mapping[str, Any] | None = None,
) -> Any:
    """Reads what `save` or `export` wrote. Nothing in it is executed or unpickled.

    Args:
      path: of the file, or of a folder with a `network.mslice`.
      model: the module or function that `upgrade` was given, with the same settings;
        for a file of `save`, since an export has programs alone. An NNX model gives its
        code, and what is no variable of it; its weights are not used, and it is not
        changed.
      variables: a tree like `net.variables` (types are enough) if its nodes are of
        classes of their own, such as Equinox modules; its values are not used.
      inputs, call: the example inputs and keywords that `upgrade` was given, if JSON
        cannot hold them, such as functions; otherwise the file has them.

    Returns:
      With the model the whole network, a `Sliceable`, as it was saved. Without it
      `Programs`, which `slice_apply` runs at the saved rates and signature, and which
      can do nothing else. Arrays are on the default device.

    Raises:
      FileNotFoundError: if there is no file.
      StorageError: for a file that is damaged, of another kind or of a later version,
        or a model that does not fit.
    """
    where = archive.local_path(path, "load")
    with archive.read(where) as reader:
        manifest = reader.manifest()
        try:
            if model is None:
                return _programs(reader, manifest)
            return _network(reader, manifest, model, variables, inputs, call)
        except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
            if isinstance(error, StorageError):
                raise
            # The checksums are right, so somebody wrote it so.
            text = f"{type(error).__name__}: {str(error)[:160]}"
            raise damaged(
                reader.path, f"its manifest makes no sense, {text}"
            ) from error


def programs_of(path: str | os.PathLike[str], leaves: Sequence[Any]) -> Programs:
    """The programs of a file of `save`, with weights that were read from it before.

    Args:
      path: as `load` takes it.
      leaves: of the variables of the network that it gave.

    Raises:
      FileNotFoundError, StorageError: as `load` without a model.
    """
    with archive.read(archive.local_path(path, "load")) as reader:
        manifest = reader.manifest()
        return Programs(leaves, _static(reader, manifest))


def _programs_of(net: Sliceable) -> Any:
    """The programs of every rate that the network can run at."""
    rates: list[float | None] = list(net.rates)
    if net.part.rate not in rates:
        rates.append(None)  # all of it, at widths of no single declared rate
    exporter = Exporter(net, rates)
    try:
        platforms, found = PLATFORMS, exporter.programs(PLATFORMS)
    except NotExported:
        # Some primitives can be lowered for the platform at hand alone.
        platforms = (jax.export.default_export_platform(),)
        found = exporter.programs(platforms)
    return exporter.common(platforms), found


def _static(reader: Reader, manifest: Any) -> Saved:
    """What `Programs` are but for the weights."""
    part = plain.part_from_json(manifest["part"])
    if "definition" not in manifest:
        return read_programs(reader, manifest, part, None)
    plan, _ = _plan(manifest)
    leaves = manifest["variables"]["leaves"]
    axes = [axes_of(plan, each["path"]) for each in leaves]
    return read_programs(reader, manifest, part, axes)


def _programs(reader: Reader, manifest: Any) -> Programs:
    saved = _static(reader, manifest)
    leaves = manifest["variables"]["leaves"]
    net = Programs([read_array(reader, x["file"], x) for x in leaves], saved)
    # A network that was saved may be asked for few of its rates; an export serves all.
    return net if "definition" in manifest else net.cut()


def _plan(manifest: Any, like: Any = None) -> tuple[WidthPlan, Any]:
    data = manifest["definition"]
    settings = plain.settings_from_json(data["settings"])
    return plain.plan_from_json(data["plan"], settings.rates, like), settings


def _network(
    reader: Reader, manifest: Any, model: Any, like: Any, inputs: Any, call: Any
) -> Sliceable:
    if "definition" not in manifest:
        raise StorageError(
            f"{reader.path} is an export, which has programs alone: load it without "
            "the model. mslice_jax.save writes networks that load with it."
        )
    data = manifest["definition"]
    plan, settings = _plan(manifest, like)
    leaves = manifest["variables"]["leaves"]
    arrays = [read_array(reader, each["file"], each) for each in leaves]
    tree = _structure(reader, manifest["variables"], like)
    variables = jax.tree.unflatten(tree, arrays)
    split, example = _example(reader, data, inputs, call)
    adapter = adapter_of(model)
    if adapter.name != manifest["kind"]:
        known = [each.name for each in ADAPTERS]
        kind = manifest["kind"]
        raise StorageError(
            f"{reader.path} has a network that was made of a {kind}; the model is a "
            f"{adapter.name}. Pass the one that `upgrade` was given."
            if kind in known
            else f"{reader.path} was made of a {kind}, which this mslice_jax does not "
            "know; update it."
        )
    facts = manifest["facts"]
    part = plain.part_from_json(manifest["part"])
    orders = plain.orders_from_json(data["orders"], plan)
    agreement = plain.agreement_from_json(data["agreement"])
    types = tuple(plain_type(x) for x in example)
    try:
        function = adapter.again(model, facts, split, types, settings.rates)
        definition = Definition(
            function, plan, split, types, settings, orders=orders, agreement=agreement
        )
        full = full_types(plan, variables, part)
        widest = plan.resolve(definition.rates(part)[-1])
        definition.program(widest, split, full, types)
    except Exception as error:
        text = (str(error).strip() or type(error).__name__).splitlines()
        raise StorageError(
            f"the model does not fit {reader.path}: {' '.join(text)[:300]} Pass the "
            "model that `upgrade` was given, with the same settings."
        ) from error
    return Sliceable(variables, definition, part)


def _structure(reader: Reader, data: Any, like: Any) -> Any:
    """The structure of the tree of variables."""
    tree = data["tree"]
    if not isinstance(tree, str):
        return jax.tree.structure(plain.tree_from_json(tree, lambda _: 0))
    if like is None:
        raise StorageError(
            f"the variables of {reader.path} have {tree}, which only its class can "
            "make again; pass variables=, a tree like net.variables (types are enough)."
        )
    paths, there = plain.paths_of(like), [tuple(x["path"]) for x in data["leaves"]]
    if paths != there:
        missing = ["/".join(path) for path in there if path not in paths][:3]
        more = ["/".join(path) for path in paths if path not in there][:3]
        raise StorageError(
            f"variables= is no tree like that in {reader.path}: it lacks {missing}, "
            f"and has {more} besides. Pass a tree like net.variables."
        )
    return jax.tree.structure(like)


def _example(
    reader: Reader, data: Any, inputs: Any, call: Any
) -> tuple[Call, Sequence[Any]]:
    """The call that `upgrade` saw."""
    if inputs is not None or call is not None:
        return Call.split(tuple(inputs or ()), keywords(call, {}))
    if isinstance(data["call"], str):
        raise StorageError(
            f"{reader.path} was upgraded with a call that JSON cannot hold "
            f"({data['call']}); give it again: load(path, model=..., inputs=(x,), "
            "call={...})."
        )
    return plain.example_from_json(data)
