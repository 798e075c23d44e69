"""The speed run: network, images, optimizer, and the recipe as a command."""

import dataclasses
import itertools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import mslice_jax as ms
from experiments import cifar_speedrun
from experiments.recipe import main
from experiments.settings import parse, resolve
from experiments.speedrun import augment, optimizer, views, whitening
from experiments.speedrun.network import SpeedNet, identity
from mslice_jax.data.dataset import Dataset
from mslice_jax.schedules import static
from tests.refusals import assert_refused

RECIPE = cifar_speedrun.RECIPE
KIND: Any = RECIPE.kind


def resolved(*args):
    settings = parse("cifar_speedrun", "", list(args), KIND.settings)
    return resolve(settings, "cifar_speedrun", KIND.defaults(RECIPE, settings))


# -- the network


def test_the_network_is_that_of_airbench():
    """Spelt as there: sums over whole images, of which poolings leave the rest out."""
    model = SpeedNet(width=1 / 8, num_classes=3)
    x = jax.random.normal(jax.random.key(0), (2, 15, 13, 3))
    variables = jax.jit(model.init)(jax.random.key(1), x)
    params: Any = jax.tree.map(
        lambda p: p + 0.1 * jax.random.normal(jax.random.key(2), p.shape),
        variables["params"],
    )
    found, _ = jax.jit(
        lambda v: model.apply(v, x, train=True, mutable=["batch_stats"])
    )({**variables, "params": params})

    def convolved(x, kernel, padding):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), padding, dimension_numbers=numbers
        )

    def normed(x, bias):
        mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
        return (x - mean) / jnp.sqrt(variance + 1e-5) + bias

    def gelu(x):
        return x * jax.scipy.stats.norm.cdf(x)

    @jax.jit
    def by_hand(params, y):
        y = convolved(y, variables["whitening"]["kernel"], "VALID")
        y = gelu(y + params["whitening_bias"])
        for group in "123":
            for layer in "12":
                name = f"group{group}_"
                y = convolved(y, params[f"{name}conv{layer}"]["kernel"], "SAME")
                if layer == "1" and min(y.shape[1:3]) > 1:
                    y = nn.max_pool(y, (2, 2), strides=(2, 2))
                y = gelu(normed(y, params[f"{name}norm{layer}"]["bias"]))
        # There 1/9 with 256 channels; here there are 32.
        scale = (256 / 32) ** 0.5 / 9
        return scale * y.max((1, 2)) @ params["head"]["kernel"]

    # 14 x 12 after the whitening, 7 x 6, 3 x 3, 1 x 1.
    with jax.numpy_rank_promotion("allow"):
        expected = by_hand(params, x)
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5)


def test_sizes_of_the_network():
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
    shapes: Any = jax.eval_shape(SpeedNet().init, jax.random.key(0), x)
    kernels = [24 * 64, 64 * 64, 64 * 256, 256 * 256, 256 * 256, 256 * 256]
    norms = 64 * 2 + 256 * 4
    count = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"]))
    assert count == 24 + 9 * sum(kernels) + norms + 256 * 10
    assert "whitening_bias" not in jax.eval_shape(
        SpeedNet(whitening_bias=False).init, jax.random.key(0), x
    )["params"]  # fmt: skip
    with pytest.raises(ValueError, match="whole number"):
        SpeedNet(width=0.3)


def test_kernels_begin_as_the_identity():
    x = jax.random.normal(jax.random.key(0), (1, 5, 5, 4))
    kernel = identity(jax.random.key(1), (3, 3, 4, 6))
    numbers = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=numbers
    )
    np.testing.assert_allclose(y[..., :4], x, rtol=1e-6)
    rest = np.asarray(kernel[..., 4:])
    assert 0 < abs(rest).max() <= 1 / 6 and (rest != 0).all()  # 1 / sqrt(3 x 3 x 4)
    narrow = np.asarray(identity(jax.random.key(1), (3, 3, 6, 4)))
    np.testing.assert_array_equal(narrow[1, 1], np.eye(6)[:, :4])
    assert abs(narrow).sum() == 4


def test_other_ways_for_kernels_to_begin():
    x = jax.ShapeDtypeStruct((1, 8, 8, 3), "float32")

    def kernel(init):
        variables = SpeedNet(width=1 / 8, kernel_init=init).init(
            jax.random.key(0), jnp.zeros(x.shape)
        )
        return np.asarray(variables["params"]["group2_conv1"]["kernel"]).reshape(-1, 32)

    filters = kernel("orthogonal")  # of 9 x 8 entries each
    np.testing.assert_allclose(filters.T @ filters, np.eye(32), atol=1e-5)
    spread = kernel("uniform")
    assert 0.9 / 72**0.5 < abs(spread).max() <= 1 / 72**0.5 and (spread != 0).all()
    with pytest.raises(ValueError, match="identity, orthogonal, uniform, got 'zero'"):
        SpeedNet(kernel_init="zero")


def test_outputs_of_the_first_layer_are_uncorrelated():
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(60, 9, 9, 2)) @ np.array([[2.0, 0.3], [0.0, 0.1]])
    images = (mixed[:, 1:, 1:] + mixed[:, :-1, :-1]).astype(np.float32)
    kernel = whitening.kernel(images)
    assert kernel.shape == (2, 2, 2, 16)
    np.testing.assert_array_equal(kernel[..., 8:], -kernel[..., :8])
    rows = [
        images[n, y : y + 2, x : x + 2].ravel() @ kernel.reshape(8, 16)[:, :8]
        for n, y, x in itertools.product(range(60), range(7), range(7))
    ]
    found = np.array(rows)
    square = found.T @ found / len(found)
    np.testing.assert_allclose(square - np.diag(np.diag(square)), 0, atol=1e-3)
    # variance / (variance + .0005): nearly 1, and the largest variances come first.
    assert (np.diag(square) < 1).all() and (np.diag(square) > 0.9).all()
    assert (np.diff(np.diag(square)) < 1e-6).all()


# -- images


def small(count=9, flip=True):
    x = np.arange(count * 6 * 5 * 3).reshape(count, 6, 5, 3).astype(np.uint8)
    return Dataset(
        name="small", x_train=x, y_train=np.arange(count, dtype=np.int32),
        x_test=x, y_test=np.arange(count, dtype=np.int32), num_classes=count,
        mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0), pad=4, flip=flip,
    )  # fmt: skip


def test_the_initial_network_whitens_training_images():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (50, 6, 6, 3)).astype(np.uint8)
    images[:, :, :, 1] = images[:, :, :, 0] // 2 + images[:, :, :, 1] // 2
    dataset = dataclasses.replace(
        small(), x_train=images, y_train=np.zeros(50, np.int32), mean=(128.0,) * 3,
        std=(50.0, 70.0, 90.0),
    )  # fmt: skip
    variables = KIND.initial(SpeedNet(width=1 / 8), jax.random.key(0), dataset)
    kernel = np.asarray(variables["whitening"]["kernel"]).reshape(12, 24)[:, :12]
    x = (images - 128.0) / np.array([50.0, 70.0, 90.0])
    patches = [
        x[:, i : i + 2, j : j + 2].reshape(50, 12) for i in range(5) for j in range(5)
    ]
    found = np.concatenate(patches) @ kernel
    np.testing.assert_allclose(found.T @ found / len(found), np.eye(12), atol=0.02)


def test_images_are_shifted_within_a_mirror():
    x = small().x_train
    moves = np.array([[0, 4], [2, 2], [4, 1], *[[1, 3]] * 6])
    found = augment.shifted(x, moves, 2)
    for image, (row, column), moved in zip(x, moves, found, strict=True):
        # Beyond the border come the pixels before it, in the other direction.
        rows = [abs(r) if r < 6 else 10 - r for r in range(row - 2, row + 4)]
        columns = [abs(c) if c < 5 else 8 - c for c in range(column - 2, column + 3)]
        np.testing.assert_array_equal(moved, image[np.ix_(rows, columns)])
    np.testing.assert_array_equal(found[1], x[1])


def test_every_second_epoch_shows_the_other_side():
    def of(flip, epoch, seed=0):
        return augment.mirrored(200, flip, seed=seed, epoch=epoch)

    first = of("alternate", 0)
    assert 60 < first.sum() < 140
    for epoch in range(4):
        expected = first if epoch % 2 == 0 else ~first
        np.testing.assert_array_equal(of("alternate", epoch), expected)
    assert (first != of("alternate", 0, seed=1)).any()
    drawn = [of("random", epoch) for epoch in range(3)]
    assert all(60 < each.sum() < 140 for each in drawn)
    assert all(
        20 < (a & b).sum() < 80 for a, b in itertools.combinations(drawn, 2)
    )  # independent: a quarter
    assert not of("none", 1).any()


def test_batches_go_on_where_they_were():
    def take(start, count, **more):
        given: Any = {"seed": 3, "shift": 1, "flip": "alternate"} | more
        stream = augment.batches(small(), 2, start=start, **given)
        return list(itertools.islice(stream, count))

    whole, part = take(0, 12), take(5, 7)
    for (x, y), (again, labels) in zip(whole[5:], part, strict=True):
        np.testing.assert_array_equal(x, again)
        np.testing.assert_array_equal(y, labels)
    # Four full batches of nine images: none twice in an epoch.
    for epoch in range(3):
        labels = np.concatenate([y for _, y in whole[4 * epoch : 4 * epoch + 4]])
        assert len(set(labels.tolist())) == 8
    plain = take(0, 12, shift=0, flip="none")
    for x, y in plain:
        np.testing.assert_array_equal(x, small().x_train[y])
    # Each image of an even epoch or its mirror image, and of an odd one the other.
    flipped: dict[int, set[tuple[int, bool]]] = {}
    for step, (x, y) in enumerate(take(0, 12, shift=0)):
        for image, label in zip(x, y, strict=True):
            original = small().x_train[label]
            is_flipped = not np.array_equal(image, original)
            if is_flipped:
                np.testing.assert_array_equal(image, original[:, ::-1])
            flipped.setdefault(int(label), set()).add((step // 4 % 2, is_flipped))
    sides = [{side ^ bool(odd) for odd, side in seen} for seen in flipped.values()]
    assert all(len(seen) == 1 for seen in sides) and len({*map(tuple, sides)}) == 2


def test_views_are_averaged():
    def linear(p, x):
        return jnp.tanh(x.reshape(len(x), -1) @ p["a"]) @ p["b"]

    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 4, 4, 1)).astype(np.float32)
    p = {"a": rng.normal(size=(16, 8)) / 4, "b": rng.normal(size=(8, 3))}
    p = jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), p)
    net = ms.upgrade(linear, p, x, rates=(0.5, 1.0))

    def of(images):
        return np.tanh(images.reshape(2, -1) @ p["a"][:, :4]) @ p["b"][:4]

    def mirrored(images):
        return np.flip(images, 2)

    def moved(by):
        """The image that begins a row and a column later, or earlier."""
        at = [1, 0, 1, 2] if by < 0 else [1, 2, 3, 2]
        return x[:, at][:, :, at]

    two = (of(x) + of(mirrored(x))) / 2
    sides = [of(v) for m in (moved(-1), moved(1)) for v in (m, mirrored(m))]
    for count, expected in {1: of(x), 2: two, 6: two / 2 + sum(sides) / 8}.items():
        found = views.logits(net, jnp.asarray(x), 0.5, views=count)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


# -- the optimizer


def tree(rng, shapes):
    def normal(shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return {n: {k: normal(s) for k, s in of.items()} for n, of in shapes.items()}


SHAPES = {
    "group1_conv1": {"kernel": (3, 3, 4, 6)},
    "group1_norm1": {"bias": (6,)},
    "head": {"kernel": (6, 2)},
}


def groups(muon):
    rate = optimizer.Triangle(steps=10, peak=0, muon=True).times
    sgd = optimizer.Group(rate(0.5), 0.85, 0.1)
    kernel = optimizer.Group(rate(0.25), 0.6, muon=True) if muon else sgd
    return {"kernel": kernel, "norm": sgd, "head": sgd}


def corners_of(params):
    return jax.tree.map(lambda p: p.shape, params)


def test_sgd_by_hand():
    rng = np.random.default_rng(0)
    params: Any = tree(rng, SHAPES)
    divisors: Any = tree(rng, SHAPES)
    build: Any = optimizer.build(groups(False), corners_of(params), divisors=divisors)
    state = build.init(params)
    w = np.asarray(params["head"]["kernel"], np.float64)
    buffer = np.zeros_like(w)
    for step in range(3):
        grads = tree(rng, SHAPES)
        updates, state = build.update(grads, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        g = np.asarray(grads["head"]["kernel"]) / np.asarray(divisors["head"]["kernel"])
        g = g + 0.1 * w
        buffer = 0.85 * buffer + g
        w = w - 0.5 * (1 - step / 10) * (g + 0.85 * buffer)
        np.testing.assert_allclose(params["head"]["kernel"], w, rtol=1e-4, atol=1e-5)


def test_an_update_of_muon_is_orthogonal_where_rates_reach():
    rng = np.random.default_rng(1)
    params: Any = tree(rng, SHAPES)
    grads: Any = tree(rng, SHAPES)
    corners = corners_of(params)
    corners["group1_conv1"]["kernel"] = (3, 3, 2, 3)  # of a narrow network
    build: Any = optimizer.build(groups(True), corners)
    updates, state = build.update(grads, build.init(params), params)
    before = np.asarray(params["group1_conv1"]["kernel"], np.float64)
    after = before + np.asarray(updates["group1_conv1"]["kernel"])
    outside = np.ones(before.shape, bool)
    outside[:, :, :2, :3] = False
    np.testing.assert_array_equal(after[outside], before[outside])
    inside = (slice(None), slice(None), slice(2), slice(3))
    corner = before[inside].reshape(18, 3)
    scaled = corner * np.sqrt(3) / np.linalg.norm(corner)
    moved = (scaled - after[inside].reshape(18, 3)) / 0.25
    grad = np.asarray(grads["group1_conv1"]["kernel"], np.float64)[inside]
    u, s, v = np.linalg.svd(grad.reshape(18, 3) * 1.6, full_matrices=False)
    # The polynomial acts on singular values alone.
    s = s / np.linalg.norm(s)
    for _ in range(3):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    np.testing.assert_allclose(moved, u * s @ v, rtol=1e-3, atol=1e-4)
    assert ((s > 0.5) & (s < 1.5)).all()
    assert int(state.count) == 1


def test_lookahead_by_hand():
    rng = np.random.default_rng(2)
    params: Any = tree(rng, SHAPES)
    how = optimizer.Lookahead(start=2, steps=8, every=2, most=0.9)
    plain: Any = optimizer.build(groups(False), corners_of(params))
    ahead: Any = optimizer.build(groups(False), corners_of(params), lookahead=how)
    state, own = ahead.init(params), plain.init(params)
    slow, bare = params, params
    for count in range(1, 7):
        grads = tree(rng, SHAPES)
        updates, state = ahead.update(grads, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        updates, own = plain.update(grads, own, bare)
        bare = jax.tree.map(jnp.add, bare, updates)
        if count <= 2:
            slow = bare
        elif count % 2 == 0:
            stays = 0.9 * (count / 8) ** 3
            slow = bare = jax.tree.map(
                lambda s, f, stays=stays: stays * s + (1 - stays) * f, slow, bare
            )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
            params,
            bare,
        )


def test_learning_rates_rise_and_fall():
    rate: Any = optimizer.Triangle(steps=100, peak=0.25, muon=False).times(2.0)
    found = [float(rate(step)) for step in (0, 5, 25, 40, 100)]
    # 75 steps from 1 to .07.
    expected = [0.4, 0.4 + 1.6 / 5, 2.0, 2 * (1 - 0.93 * 15 / 75), 0.14]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    early: Any = optimizer.falling(3.0, 6)
    assert [float(early(step)) for step in (0, 2, 6, 9)] == [3.0, 2.0, 0.0, 0.0]


@pytest.fixture(scope="module")
def network():
    model = SpeedNet(width=1 / 8)
    x = jax.ShapeDtypeStruct((2, 16, 16, 3), "float32")
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros(x.shape))
    return ms.upgrade(
        model,
        variables,
        x,
        rates=(1.0, 0.5),
        norm="switchable",
        exclude=KIND.exclude,
        follow=KIND.follow,
    )


def test_rates_that_train_a_weight_are_counted(network):
    found: Any = optimizer.counts(network, [static((1.0, 0.5))(0)])
    expected = np.ones((3, 3, 24, 8))
    expected[..., :4] = 2
    np.testing.assert_array_equal(found["group1_conv1"]["kernel"], expected)
    expected = np.ones((3, 3, 32, 32))
    expected[:, :, :16, :16] = 2
    np.testing.assert_array_equal(found["group3_conv2"]["kernel"], expected)
    np.testing.assert_array_equal(found["whitening_bias"], np.full(24, 2.0))
    half: Any = optimizer.counts(network, [(1.0,), (1.0, 0.5)])
    np.testing.assert_array_equal(half["head"]["kernel"][:, 0], [1.5] * 16 + [1.0] * 16)
    # A batch norm for each rate: of one rate each.
    for leaf in jax.tree.leaves(found["group1_norm1"]):
        np.testing.assert_array_equal(leaf, np.ones(leaf.shape))
    whole: Any = optimizer.reached(network)
    assert whole["group2_conv1"]["kernel"] == (3, 3, 8, 32)


# -- the command

SHORT = "--rates 1 .5 --width .125 --epochs 1 --batch-size 64 --train-examples 128"


def test_a_shortened_default_run(capsys, tmp_path):
    code = main(RECIPE, [*SHORT.split(), "--workdir", str(tmp_path / "work")])
    screen, error = capsys.readouterr()
    assert code == 0, error
    assert "SpeedNet x0.125 on Dataset(digits: 128 training" in screen
    rows = [line.split() for line in screen.splitlines() if "│" in line]
    assert [row[1] for row in rows] == ["1", "0.5"]
    summary = json.loads((tmp_path / "work" / "summary.json").read_text())
    assert summary["optimizer"] == "muon"

    def parameters(rate):
        """By hand; digits have one channel, so 8 are whitened. Norms have no scale."""
        a, b = int(8 * rate), int(32 * rate)
        kernels = 8 * a + a * a + a * b + 3 * b * b
        return 9 * kernels + 2 * a + 4 * b + 10 * b

    for rate, values in summary["rates"].items():
        assert values["parameters"] == parameters(float(rate))
        assert "accuracy_6_views" not in values  # digits have no mirror images
    for picture in KIND.pictures:
        assert (tmp_path / "work" / picture).read_bytes().startswith(b"\x89PNG")


def test_measurements_besides():
    settings = resolved("--dataset", "cifar10", "--views", "2")
    assert list(KIND.further(settings, small())) == ["accuracy_2_views"]
    assert not KIND.further(settings, small(flip=False))
    assert not KIND.further(resolved("--dataset", "cifar10", "--views", "1"), small())


def test_the_defaults():
    found = resolved("--dataset", "cifar10")
    assert (found.optimizer, found.lr, found.batch_size) == ("muon", 0.12, 500)
    assert (found.epochs, found.width, found.schedule) == (8, 1.0, "static")
    assert found.weight_decay == 2e-6 and found.warmup_epochs == 0
    public = resolved("--dataset", "cifar10", "--batch-size", "2000")
    assert public.lr == 0.24
    sgd = resolved("--dataset", "cifar10", "--optimizer", "sgd")
    assert (sgd.lr, sgd.bias_lr, sgd.peak) == (1.5e-3, 64 * 1.5e-3, 0.23)
    for given in ([], ["--dataset", "cifar100"]):
        KIND.check(RECIPE, resolved(*given))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--cosine"], "--cosine has no effect: .* --peak"),
        (["--epochs", "8", "--warmup-epochs", "1"], "--warmup-epochs has no effect"),
        (["--clip", "1"], "--clip has no effect"),
        (["--dataset", "folder", "--data-dir", "x"], "held in memory .* got folder"),
        (["--width", "0.3"], "whole number"),
        (["--peak", "1"], r"--peak in \[0, 1\), got 1"),
        (["--divide", "2"], "--divide from 0 to 1, got 2"),
        (["--translate", "-1"], "--translate of at least 0, got -1"),
    ],
)
def test_settings_that_do_not_fit_end_with_one_line(
    capsys, tmp_path, monkeypatch, args, message
):
    monkeypatch.chdir(tmp_path)
    code = main(RECIPE, [*args, "--workdir", str(tmp_path / "work")])
    assert_refused((code, *capsys.readouterr()), message, tmp_path)
