"""Weights of PyTorch: torchvision's networks, and checkpoints of the original.

    python -m mslice_jax.models.import_torch resnet50.pth runs/resnet50 --model resnet50

IN is a torch file, safetensors or npz with the state dict of a network that torchvision
has under the same name, or a checkpoint of the authors' code (``--model
cifar_resnet11``, ``cifar_vgg16``). OUT becomes a folder with the sliceable network:
`mslice_jax.load` reads it, `restore_narrow` reads single rates of its ``checkpoints``,
and the recipes begin with it (``--weights OUT``). With a name that ends in ".mslice"
it is the file alone. Nothing is written unless every tensor found its place.
"""

import argparse
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ..core.paths import Path as LeafPath
from ..core.paths import path_parts
from ..core.rates import check_rates
from ..sliceable import Sliceable, extract
from ..storage import save
from ..upgrade import upgrade
from . import imagenet_resnet, imagenet_vgg, inception, mobilenet, vit
from .resnet import CifarResNet
from .torch_files import WeightsError as WeightsError
from .torch_files import read_state_dict as read_state_dict
from .torch_names import entries
from .torch_variables import check_keys
from .torch_variables import image_size as image_size_of
from .torch_variables import import_state_dict as import_state_dict
from .vgg import CifarVGG

_NORM_LIST = re.compile(r"(.*)\.bn_list\.(\d+)\.(\w+)")


def import_network(
    state: Mapping[str, np.ndarray],
    model: Any,
    *,
    rates: Iterable[float],
    norm: str | None = None,
    groups: int = 8,
    image_size: int | None = None,
    **settings: Any,
) -> Sliceable:
    """A state dict of PyTorch as a sliceable network.

    Besides what `import_state_dict` takes, checkpoints of the authors' code: with group
    norms (norm="group"), and MultiBN, the lists of batch norms of which each is of one
    rate (norm="switchable").

    Args:
      state: arrays by name.
      model: the same network in Flax.
      rates: the slice rates; of a network with MultiBN those that it has norms for.
      norm, groups, **settings: as `upgrade` takes them. By default batch norms are
        shared, and lists of them switchable.
      image_size: height and width of the images; by default that of the network.

    Raises:
      WeightsError: if the state dict is that of another network, as
        `import_state_dict` says it.
      ValueError, PlanError, RateError: as `upgrade`.
    """
    rates = check_rates(rates)
    size = image_size or image_size_of(model)
    x = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    state = dict(state)
    own, lists = _lists_apart(state, rates)
    if lists and norm not in (None, "switchable"):
        raise WeightsError(
            "the state dict has one batch norm for each rate (bn_list), which makes "
            f"norm='switchable'; got norm={norm!r}."
        )
    norm = "switchable" if lists else norm
    statistics = norm != "group" or any("running_mean" in key for key in own)
    found = import_state_dict(own, model, statistics=statistics)
    arguments = (found,) if isinstance(model, nnx.Module) else (model, found)
    net = upgrade(*arguments, x, rates=rates, norm=norm, groups=groups, **settings)
    return _with_lists(net, model, lists) if lists else net


# MultiBN: the original's list of batch norms, widest rate first.

_Lists = dict[float, dict[str, np.ndarray]]


def _lists_apart(
    state: Mapping[str, np.ndarray], rates: tuple[float, ...]
) -> tuple[dict[str, np.ndarray], _Lists]:
    """The state dict with the widest norms alone, and the narrower ones by rate."""
    own: dict[str, np.ndarray] = {}
    lists: _Lists = {}
    descending = sorted(rates, reverse=True)
    for key, tensor in state.items():
        match = _NORM_LIST.fullmatch(key)
        if match is None:
            own[key] = tensor
            continue
        module, number, leaf = match[1], int(match[2]), match[3]
        if number >= len(descending):
            raise WeightsError(
                f"the state dict has more batch norms in each list than the "
                f"{len(descending)} rates {tuple(descending)}: {key}. Give the rates "
                "that it was trained with (sr_list)."
            )
        if number == 0:
            own[f"{module}.{leaf}"] = tensor
        elif leaf != "num_batches_tracked":
            narrower = lists.setdefault(descending[number], {})
            narrower[f"{module}.{leaf}"] = tensor
    if lists and len(lists) + 1 < len(descending):
        raise WeightsError(
            f"the state dict has {len(lists) + 1} batch norms in each list, for "
            f"{len(descending)} rates {tuple(descending)}. Give the rates that it was "
            "trained with (sr_list)."
        )
    return own, lists


def _with_lists(net: Sliceable, model: Any, lists: _Lists) -> Sliceable:
    """The network with, for each narrower rate, the norms of the state dict."""
    function: Any = net.definition.function
    types = jax.eval_shape(lambda net: net, net)
    norms = set(function.sites)
    variables = jax.tree.map(np.array, net.variables)
    for rate, state in lists.items():
        # Norms of narrow rates are as long as those of the others, of which they see
        # the leading part; there they are short.
        narrow = _flat(function.select(extract(types, rate).variables, rate))
        own = {path: narrow[path].shape for path in narrow if path[1:-1] in norms}
        wanted = entries(model, own)
        check_keys(model, state, wanted, own, f"the list of norms at rate {rate}")
        leaves = _flat(function.select(variables, rate))
        for entry in wanted:
            (path,) = entry.leaves
            size = own[path][0]
            leaves[path][:size] = state[entry.key]
            leaves[path][size:] = path[-1] in ("scale", "var")
    return net.replace(variables)


def _flat(tree: Any) -> dict[LeafPath, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_parts(path): leaf for path, leaf in leaves}


# The command.

_NAMES = {
    imagenet_resnet: ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    imagenet_vgg: tuple(
        f"vgg{n}{bn}" for n in imagenet_vgg.STAGES for bn in ("", "_bn")
    ),
    inception: ("googlenet",),
    mobilenet: ("mobilenet_v2",),
    vit: ("vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32", "vit_h_14"),
}
FACTORIES = {
    name: getattr(module, name) for module in _NAMES for name in _NAMES[module]
}
"""The networks that torchvision has under the same names."""
_CIFAR = {"cifar_resnet": CifarResNet, "cifar_vgg": CifarVGG}
_HEADS = ("fc", "classifier", "classifier.1", "classifier.6", "heads.head")


def build(name: str, **settings: Any) -> Any:
    """The network of a name: those of `FACTORIES`, or cifar_resnet11, cifar_vgg16, ...

    Raises:
      ValueError: if there is none, with the names that there are.
    """
    if name in FACTORIES:
        return FACTORIES[name](**settings)
    match = re.fullmatch(r"(cifar_resnet|cifar_vgg)(\d+)", name)
    if match is None:
        raise ValueError(
            f"expected a --model of {', '.join(FACTORIES)}, or cifar_resnet or "
            f"cifar_vgg with a depth, such as cifar_resnet11; got {name}."
        )
    return _CIFAR[match[1]](depth=int(match[2]), **settings)


def main(args: Sequence[str] | None = None) -> int:
    """The command; returns the exit code: 0, 2 if something does not fit, or 130."""
    flags = _flags(args)
    try:
        out = Path(flags.out).expanduser()
        if os.path.lexists(out):
            raise ValueError(f"{out} is there; name another OUT.")
        state = read_state_dict(flags.file)
        net = import_network(
            state,
            build(flags.model, **_settings(flags, state)),
            rates=flags.rates,
            norm=flags.norm,
            groups=flags.groups,
            image_size=flags.image_size,
        )
        _write(net, out, programs=flags.programs)
    except (ValueError, TypeError, OSError) as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)  # noqa: T201
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted; nothing was written.")  # noqa: T201
        return 130
    print(f"{flags.model}: {len(state)} tensors, {net}, in {out}.")  # noqa: T201
    return 0


def _settings(flags: argparse.Namespace, state: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the network; the number of classes as the file has it."""
    heads = [state[f"{name}.bias"] for name in _HEADS if f"{name}.bias" in state]
    settings: dict[str, Any] = {}
    if heads and np.ndim(heads[0]) == 1:
        settings["num_classes"] = len(heads[0])
    if flags.widen is not None:
        settings["widen"] = flags.widen
    if flags.model.startswith("vit_") and flags.image_size is not None:
        settings["image_size"] = flags.image_size
    if flags.model == "googlenet":
        settings["aux_logits"] = any(name.startswith("aux1.") for name in state)
        settings["transform_input"] = flags.transform_input
    return settings


def _write(net: Sliceable, out: Path, *, programs: bool) -> None:
    """All of it, or nothing: it takes its name when it is complete."""
    if out.suffix == ".mslice":
        save(net, out, programs=programs)
        return
    import optax

    from ..train.checkpoints import CheckpointError, Checkpoints, Progress
    from ..train.state import TrainState

    out.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        save(net, part / "network.mslice", programs=programs)
        state = TrainState.create(net, optax.identity(), key=jax.random.key(0))
        with Checkpoints(part / "checkpoints", asynchronous=False) as checkpoints:
            checkpoints.save(state, Progress())
        part.chmod(0o777 & ~_umask())
        part.rename(out)
    except CheckpointError as error:
        raise OSError(str(error)) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)  # unless it has its name


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _flags(args: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m mslice_jax.models.import_torch",
        description="Make a sliceable network of weights of PyTorch.",
    )
    parser.add_argument("file", metavar="IN", help="torch file, safetensors or npz")
    parser.add_argument("out", metavar="OUT", help="a folder, or NAME.mslice")
    parser.add_argument(
        "--model", required=True, help="as torchvision names it, or cifar_resnet11, ..."
    )
    parser.add_argument(
        "--rates",
        type=float,
        nargs="+",
        default=(1.0, 0.75, 0.5, 0.25),
        help="slice rates; of MultiBN those that it was trained with",
    )
    parser.add_argument(
        "--norm",
        choices=("group", "switchable", "shared"),
        help="what becomes of batch norms; shared if not given",
    )
    parser.add_argument("--groups", type=int, default=8, help="units of an axis")
    parser.add_argument("--widen", type=float, help="factor on the channels")
    parser.add_argument("--image-size", type=int, help="height and width of images")
    parser.add_argument(
        "--transform-input",
        action="store_true",
        help="for torchvision's pretrained googlenet, which has it, too",
    )
    parser.add_argument(
        "--programs",
        action="store_true",
        help="export programs, for ms.load without the model",
    )
    return parser.parse_args(args)


if __name__ == "__main__":
    sys.exit(main())
