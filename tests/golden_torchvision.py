"""Logits of torchvision's own networks (tests/golden/torchvision.npz).

    python -m tests.golden_torchvision

writes them anew, where torchvision is installed. Weights and images are drawn by name
(`tests/torch_weights.py`), so none are stored: for each network there are the logits of
two images, and for each batch norm the mean square of its input in a forward pass in
training mode, around which its statistics are drawn. So every batch norm has an effect,
and signals keep their size.

If a number here changes, the networks of mslice_jax are wrong; a new version of
torchvision gives the same ones.
"""

import pathlib
from typing import Any

import numpy as np

from mslice_jax import models
from tests.torch_weights import draw, images, weights

FILE = pathlib.Path(__file__).parent / "golden" / "torchvision.npz"
CLASSES = 10
VIT = {"image_size": 32, "patch_size": 8}

NETWORKS: dict[str, Any] = {
    "resnet18": models.resnet18(num_classes=CLASSES),
    "resnet50": models.resnet50(num_classes=CLASSES),
    "vgg11": models.vgg11(num_classes=CLASSES, widen=0.125),
    "vgg16_bn": models.vgg16_bn(num_classes=CLASSES, widen=0.125),
    "googlenet": models.googlenet(num_classes=CLASSES, transform_input=True),
    "mobilenet_v2": models.mobilenet_v2(num_classes=CLASSES),
    "vit": models.VisionTransformer(
        **VIT, layers=2, heads=4, hidden=32, mlp=48, num_classes=CLASSES
    ),
}
SIZES = {"vit": 32, "googlenet": 80}  # height and width of the images; else 64


def statistics(squares: dict[str, float], shapes: Any) -> dict[str, np.ndarray]:
    """Means and variances, drawn around the mean square of each norm's input."""
    state = {}
    for norm, square in squares.items():
        mean, var = f"{norm}.running_mean", f"{norm}.running_var"
        noise = draw(mean, shapes[mean])
        state[mean] = np.float32(0.3 * np.sqrt(square)) * noise
        state[var] = np.float32(square) * np.exp(0.3 * draw(var, shapes[var]))
    return state


def norms(shapes: Any) -> list[str]:
    """The names of the batch norms, sorted."""
    ending = ".running_var"
    return sorted(name.removesuffix(ending) for name in shapes if name.endswith(ending))


def load(name: str) -> tuple[np.ndarray, dict[str, float], np.ndarray]:
    """(logits (2, 10), mean square by the number of the norm, images)."""
    with np.load(FILE) as file:
        logits, squares = file[f"{name}/logits"], file[f"{name}/squares"]
    return logits, squares, images(SIZES.get(name, 64))


def _torch_network(name: str) -> Any:
    import torch
    import torchvision

    zoo = torchvision.models
    if name == "vit":
        return zoo.VisionTransformer(
            **VIT,
            num_layers=2,
            num_heads=4,
            hidden_dim=32,
            mlp_dim=48,
            num_classes=CLASSES,
        )
    if name.startswith("vgg"):  # torchvision's own layers, an eighth as wide
        letter = {"vgg11": "A", "vgg16_bn": "D"}[name]
        channels = [c if c == "M" else c // 8 for c in zoo.vgg.cfgs[letter]]
        features = zoo.vgg.make_layers(channels, batch_norm=name.endswith("_bn"))
        network = zoo.VGG(features, num_classes=CLASSES, init_weights=False)
        for index, (inputs, outputs) in {0: (49 * 64, 512), 3: (512, 512)}.items():
            network.classifier[index] = torch.nn.Linear(inputs, outputs)
        network.classifier[6] = torch.nn.Linear(512, CLASSES)
        return network
    more = {"init_weights": False, "transform_input": True} if "google" in name else {}
    return getattr(zoo, name)(num_classes=CLASSES, **more)


def _run(name: str) -> tuple[np.ndarray, np.ndarray]:
    import torch

    network = _torch_network(name)
    shapes = {key: tuple(x.shape) for key, x in network.state_dict().items()}
    squares: dict[str, float] = {}

    def load(state: dict[str, np.ndarray]) -> None:
        tensors = {key: torch.tensor(x) for key, x in state.items()}
        _, unexpected = network.load_state_dict(tensors, strict=False)
        assert not unexpected

    def see(norm: str) -> Any:
        def hook(module: Any, inputs: Any) -> None:
            squares[norm] = float((inputs[0] ** 2).mean())

        return hook

    load(weights(shapes))
    for norm in norms(shapes):
        network.get_submodule(norm).register_forward_pre_hook(see(norm))
    x = torch.tensor(images(SIZES.get(name, 64))).permute(0, 3, 1, 2)
    with torch.no_grad():
        network.train()(x)
        found = dict(squares)  # the forward pass below changes them
        load(statistics(found, shapes))
        logits = network.eval()(x).numpy()
    return logits, np.array([found[norm] for norm in norms(shapes)], np.float32)


def main() -> None:
    arrays = {}
    for name in NETWORKS:
        arrays[f"{name}/logits"], arrays[f"{name}/squares"] = _run(name)
        print(name, arrays[f"{name}/logits"].std(), len(arrays[f"{name}/squares"]))
    np.savez_compressed(FILE, **arrays)


if __name__ == "__main__":
    main()
