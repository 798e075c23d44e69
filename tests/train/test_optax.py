"""Every optimizer of Optax and its contrib module: it works, or is refused in a line.

What a step does with an optimizer is compared with Optax itself, called by hand with
gradients that JAX takes of a network written without this library.
"""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from mslice_jax.train import OptimizerError, TrainState, make_train_step
from tests.train.conftest import label_loss

c = optax.contrib
KEY = 0
# By the name in Optax. What builds on another optimizer is given SGD.
BASE = functools.partial(optax.sgd, 0.05)
TABLE = {
    # optimizers
    "adabelief": lambda: optax.adabelief(0.01),
    "adadelta": lambda: optax.adadelta(0.1),
    "adafactor": lambda: optax.adafactor(0.01),
    "adagrad": lambda: optax.adagrad(0.1),
    "adam": lambda: optax.adam(0.01),
    "adamax": lambda: optax.adamax(0.01),
    "adamaxw": lambda: optax.adamaxw(0.01),
    "adamw": lambda: optax.adamw(0.01),
    "adan": lambda: optax.adan(0.01),
    "amsgrad": lambda: optax.amsgrad(0.01),
    "fromage": lambda: optax.fromage(0.01),
    "lamb": lambda: optax.lamb(0.01),
    "lars": lambda: optax.lars(0.1),
    "lbfgs": lambda: optax.lbfgs(),
    "lion": lambda: optax.lion(0.001),
    "lookahead": lambda: optax.lookahead(optax.sgd(0.1), 2, 0.5),
    "nadam": lambda: optax.nadam(0.01),
    "nadamw": lambda: optax.nadamw(0.01),
    "noisy_sgd": lambda: optax.noisy_sgd(0.1, key=KEY),
    "novograd": lambda: optax.novograd(0.01),
    "optimistic_adam_v2": lambda: optax.optimistic_adam_v2(0.01),
    "optimistic_gradient_descent": lambda: optax.optimistic_gradient_descent(0.1),
    "polyak_sgd": lambda: optax.polyak_sgd(0.1),
    "radam": lambda: optax.radam(0.01),
    "rmsprop": lambda: optax.rmsprop(0.01),
    "rprop": lambda: optax.rprop(0.01),
    "sgd": lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
    "sign_sgd": lambda: optax.sign_sgd(0.01),
    "signum": lambda: optax.signum(0.01),
    "sm3": lambda: optax.sm3(0.1),
    "yogi": lambda: optax.yogi(0.01),
    # contrib
    "acprop": lambda: c.acprop(0.01),
    "ademamix": lambda: c.ademamix(0.01),
    "adopt": lambda: c.adopt(0.01),
    "cocob": lambda: c.cocob(),
    "dadapt_adamw": lambda: c.dadapt_adamw(),
    "differentially_private_aggregate": lambda: c.differentially_private_aggregate(
        1.0, 0.1, KEY
    ),
    "dog": lambda: c.dog(1.0),
    "dowg": lambda: c.dowg(1.0),
    "dpsgd": lambda: c.dpsgd(0.1, 1.0, 0.1, seed=KEY),
    "galore": lambda: c.galore(0.01, rank=2),
    "madgrad": lambda: c.madgrad(0.01),
    "mechanize": lambda: c.mechanize(BASE()),
    "momo": lambda: c.momo(),
    "momo_adam": lambda: c.momo_adam(),
    "muon": lambda: c.muon(0.01),
    "normalize": lambda: optax.chain(c.normalize(), BASE()),
    "prodigy": lambda: c.prodigy(),
    "reduce_on_plateau": lambda: optax.chain(BASE(), c.reduce_on_plateau()),
    "sam": lambda: c.sam(BASE(), optax.chain(c.normalize(), optax.sgd(0.05))),
    "schedule_free": lambda: c.schedule_free(optax.sgd(0.1), 0.1),
    "schedule_free_adamw": lambda: c.schedule_free_adamw(0.01),
    "schedule_free_sgd": lambda: c.schedule_free_sgd(0.1),
    "simplified_ademamix": lambda: c.simplified_ademamix(0.001),
    "sophia": lambda: c.sophia(0.01),
    "split_real_and_imaginary": lambda: c.split_real_and_imaginary(BASE()),
    # what wraps an optimizer, or is chained with one
    "adaptive_grad_clip": lambda: optax.chain(optax.adaptive_grad_clip(0.1), BASE()),
    "add_decayed_weights": lambda: optax.chain(optax.add_decayed_weights(0.1), BASE()),
    "add_noise": lambda: optax.chain(optax.add_noise(0.1, 0.5, key=KEY), BASE()),
    "apply_every": lambda: optax.chain(BASE(), optax.apply_every(2)),
    "apply_if_finite": lambda: optax.apply_if_finite(BASE(), 3),
    "centralize": lambda: optax.chain(optax.centralize(), BASE()),
    "chain": lambda: optax.chain(optax.clip_by_global_norm(0.1), optax.adam(0.01)),
    "clip": lambda: optax.chain(optax.clip(0.01), BASE()),
    "clip_by_block_rms": lambda: optax.chain(optax.clip_by_block_rms(0.01), BASE()),
    "clip_by_global_norm": lambda: optax.chain(optax.clip_by_global_norm(0.1), BASE()),
    "conditionally_mask": lambda: optax.chain(
        BASE(), optax.conditionally_mask(optax.trace(0.9), lambda step: step > 0)
    ),
    "conditionally_transform": lambda: optax.chain(
        BASE(), optax.conditionally_transform(optax.trace(0.9), lambda step: step > 0)
    ),
    "ema": lambda: optax.chain(optax.ema(0.9), BASE()),
    "flatten": lambda: optax.flatten(optax.adam(0.01)),
    "identity": lambda: optax.chain(optax.identity(), BASE()),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adam)(
        learning_rate=lambda step: 0.01 / (1.0 + step)
    ),
    "keep_params_nonnegative": lambda: optax.chain(
        BASE(), optax.keep_params_nonnegative()
    ),
    "masked": lambda: optax.chain(
        BASE(), optax.masked(optax.trace(0.9), lambda p: jax.tree.map(jnp.ndim, p))
    ),
    "named_chain": lambda: optax.named_chain(
        ("clip", optax.clip(1.0)), ("sgd", BASE())
    ),
    "normalize_by_update_norm": lambda: optax.chain(
        optax.normalize_by_update_norm(), BASE()
    ),
    "partition": lambda: optax.partition(
        {"a": optax.adam(0.01), "b": BASE()},
        lambda params: {k: "b" if k == "logits" else "a" for k in params},
    ),
    "scale_by_backtracking_linesearch": lambda: optax.chain(
        optax.sgd(1.0), optax.scale_by_backtracking_linesearch(10)
    ),
    "scale_by_zoom_linesearch": lambda: optax.chain(
        optax.sgd(1.0), optax.scale_by_zoom_linesearch(10)
    ),
    "snapshot": lambda: optax.chain(optax.snapshot("x", lambda u, *a, **k: u), BASE()),
    "MultiSteps": lambda: optax.MultiSteps(optax.adam(0.01), 2),
    "sam_opaque": lambda: c.sam(
        BASE(), optax.chain(c.normalize(), optax.sgd(0.05)), opaque_mode=True
    ),
    "sam_in_a_chain": lambda: optax.chain(
        optax.clip(1.0), c.sam(BASE(), optax.chain(c.normalize(), optax.sgd(0.05)))
    ),
}
REFUSED = {
    "dpsgd": "the gradient of each example by itself",
    "differentially_private_aggregate": "the gradient of each example by itself",
}
# Functions of gradients and weights that ask for nothing else: every night.
PLAIN = {
    "acprop", "adabelief", "adadelta", "adafactor", "adagrad", "adamax", "adamaxw",
    "adan", "adaptive_grad_clip", "add_decayed_weights", "add_noise", "ademamix",
    "adopt", "amsgrad", "apply_every", "centralize", "clip", "clip_by_block_rms",
    "clip_by_global_norm", "cocob", "dadapt_adamw", "dowg", "ema", "fromage",
    "galore", "identity", "keep_params_nonnegative", "lamb", "lars", "lion",
    "madgrad", "MultiSteps", "nadam", "nadamw", "named_chain", "noisy_sgd",
    "normalize", "normalize_by_update_norm", "novograd", "optimistic_adam_v2",
    "optimistic_gradient_descent", "radam", "rmsprop", "rprop", "sign_sgd",
    "signum", "simplified_ademamix", "sm3", "yogi",
}  # fmt: skip
# Pieces that the optimizers above are made of, and aliases.
PIECES = {
    "freeze", "inject_stateful_hyperparams", "measure_with_ema", "multi_transform",
    "optimistic_adam", "scale", "selective_transform", "set_to_zero", "stateless",
    "stateless_with_tree_map", "trace", "with_extra_args_support", "zero_nans",
}  # fmt: skip


def is_sophia(state):
    return isinstance(state, optax.contrib.SophiaState)


@jax.jit
def both_rates(params, x, y):
    return label_loss(params, x, y, 8) + label_loss(params, x, y, 4)


value_and_grad = jax.jit(jax.value_and_grad(both_rates))


def by_hand(optimizer, params, batches):
    """Optax itself, with the loss of the rates 1 and 0.5 written out."""
    if isinstance(optimizer, optax.MultiSteps):
        optimizer = optimizer.gradient_transformation()
    slow = "lookahead" if "lookahead" in str(optimizer.update) else None
    params = optax.LookaheadParams.init_synced(params) if slow else params
    state = optimizer.init(params)
    hessian = bool(
        [s for s in jax.tree.leaves(state, is_leaf=is_sophia) if is_sophia(s)]
    )
    takes_all = any(
        p.kind is p.VAR_KEYWORD
        for p in inspect.signature(optimizer.update).parameters.values()
    )

    # Compiled as a whole it would run three times. Its operations are compiled one by
    # one, and once for all optimizers.
    for x, y in batches:
        fast = params.fast if slow else params
        value, grads = value_and_grad(fast, x, y)

        def loss(params, *_, x=x, y=y):
            return both_rates(params, x, y)

        extra = {}
        if takes_all and isinstance(optimizer, optax.GradientTransformationExtraArgs):
            extra = {"value": value, "grad": grads, "value_fn": loss}
            # A line search refuses what it has no use for.
            extra = {"obj_fn": loss} if hessian else extra
        elif "grad_fn" in inspect.signature(optimizer.update).parameters:
            extra = {"grad_fn": jax.grad(loss)}
        updates, state = optimizer.update(grads, state, params, **extra)
        params = optax.apply_updates(params, updates)
    return (params.fast if slow else params), state, params


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.nightly] if name in PLAIN else [])
        for name in TABLE
        if name not in REFUSED
    ],
)
def test_an_optimizer_does_what_it_does_in_optax(name, net, small, compilations):
    optimizer, batches = TABLE[name](), [small.batch(n) for n in range(3)]
    params = net.variables["params"]
    state = TrainState.create(net, optimizer, key=jax.random.key(7))
    step = make_train_step(optimizer)
    with compilations() as names:
        for batch in batches:
            state, metrics = step(state, batch, (1.0, 0.5))
    # What evaluates the loss itself was begun without, and then compiled with it.
    assert sum("apply_updates" in n for n in names) == 1
    jax.tree.map(np.asarray, params)  # the caller's are still there
    if name == "sam_in_a_chain":  # Optax itself has no call that suits both
        return
    expected, _, _ = by_hand(optimizer, params, batches)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5),
        state.net.variables["params"],
        expected,
    )
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), params, expected)
    assert max(jax.tree.leaves(moved)) > 0
    assert np.isfinite(float(metrics[0.5]["loss"]))


@pytest.mark.filterwarnings("ignore:.seed. is deprecated")  # dpsgd's own call
@pytest.mark.parametrize("name", REFUSED)
def test_an_optimizer_is_refused_in_a_line(name, net, small):
    optimizer = TABLE[name]()
    state = TrainState.create(net, optimizer, key=jax.random.key(7))
    with pytest.raises(OptimizerError, match=REFUSED[name]) as error:
        make_train_step(optimizer)(state, small.batch(), (1.0,))
    assert "\n" not in str(error.value)


def test_the_table_has_every_optimizer_of_optax():
    found = set()
    for module in (optax, optax.contrib):
        for name, value in vars(module).items():
            if name.startswith("_") or not inspect.isfunction(value):
                continue
            answer = str(inspect.signature(value).return_annotation)
            if "GradientTransformation" in answer:
                found.add(name)
    pieces = {n for n in found if n.startswith("scale_by_") and n not in TABLE}
    assert found - pieces - PIECES - set(TABLE) == set()


def test_a_missing_argument_is_named(net, small):
    def update(updates, state, params=None, *, weather, **extra):
        return updates, state

    optimizer = optax.GradientTransformationExtraArgs(lambda params: (), update)
    state = TrainState.create(net, optimizer, key=jax.random.key(7))
    with pytest.raises(OptimizerError, match="weather"):
        make_train_step(optimizer)(state, small.batch(), (1.0,))


def test_the_weights_to_evaluate_are_those_of_optax(net, small):
    params = net.variables["params"]
    batches = [small.batch(n) for n in range(3)]

    def evaluated(name):
        optimizer = TABLE[name]()
        state = TrainState.create(net, optimizer, key=jax.random.key(7))
        step = make_train_step(optimizer)
        for batch in batches:
            state, _ = step(state, batch, (1.0, 0.5))
        found = state.eval_net.variables["params"]
        trained = state.net.variables["params"]
        differ = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), found, trained)
        assert max(jax.tree.leaves(differ)) > 1e-4
        return found, by_hand(optimizer, params, batches)

    def close(found, expected):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected
        )

    found, (trained, state, _) = evaluated("schedule_free_sgd")
    close(found, optax.contrib.schedule_free_eval_params(state, trained))
    found, (_, _, both) = evaluated("lookahead")
    close(found, both.slow)
    found, (_, state, _) = evaluated("sam")  # step 3 of periods of 2: on its way
    close(found, state.cache)


def test_schedule_free_for_a_part_has_no_weights_to_evaluate(net):
    optimizer = optax.partition(
        {"free": optax.contrib.schedule_free_sgd(0.1), "other": optax.sgd(0.1)},
        lambda params: {k: "free" if k == "logits" else "other" for k in params},
    )
    state = TrainState.create(net, optimizer, key=jax.random.key(7))
    with pytest.raises(OptimizerError, match="for a part of the weights"):
        state.eval_net  # noqa: B018
