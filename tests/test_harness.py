"""Bad inputs, drawn over every argument of every function, network and algorithm.

No outcome is obscure, silent or endless: see `harness.py`. What reads data, plays episodes or writes files is drawn in
`test_harness_extras.py`.
"""

import dataclasses
import inspect

import equinox as eqx
import jax.numpy as jnp
import pytest
from algorithms import MODULES, learner, losses, networks, optimizers, small, start, transitions
from calls import KEY, STEP, X, act, critic, stay
from harness import (
    ANYTHING,
    BAD,
    COUNTS,
    FLAGS,
    FRACTIONS,
    FUNCTIONS_OF_ANYTHING,
    POSITIVE,
    REAL,
    ROWS,
    VECTORS,
    Call,
    assert_draws_end_well,
    fault,
    for_each,
    ignore_warnings,
    value,
)

import shortcutrl
from shortcutrl import nn

# ------------------------------------------------------------------------------- the valid calls


def denoiser(obs, x, t):
    return jnp.zeros_like(x)


FUNCTIONS = {
    "shortcut_step": {"velocity": stay, "obs": None, "x": X, "t": 0.25, "h": 0.5},
    "rollout_k": {"velocity": stay, "obs": None, "noise": X, "k": 2, "clip": (-1.0, 1.0), "remat": False},
    "consistency_gap": {"velocity": stay, "obs": None, "x": X, "t": 0.25, "h": 0.5},
    "interpolate": {"noise": X, "action": X, "t": 0.5},
    "draw_flow_matching": {"key": KEY, "num_steps": 8, "shape": (3,)},
    "draw_self_consistency": {"key": KEY, "num_steps": 8, "shape": (3,)},
    "flow_matching_loss": {"velocity": stay, "obs": None, "action": X, "noise": X, "t": 0.25, "h": 0.5},
    "self_consistency_loss": {
        **{"velocity": stay, "teacher": stay, "obs": None, "action": X, "noise": X},
        **{"t": 0.25, "h": 0.5},
    },
    "shortcut_loss": {
        **{"velocity": stay, "teacher": stay, "obs": None, "action": X, "num_steps": 4, "key": KEY},
        **{"flow_matching_weight": 1.0, "self_consistency_weight": 1.0},
        **{"flow_matching_times": lambda key: (0.5, 0.0), "self_consistency_times": lambda key: (0.5, 0.5)},
    },
    "gaussian_nll": {"mean": X, "action": X},
    "bellman_target": {"transition": STEP, "next_value": 1.0, "discount": 0.9},
    "td_target": {
        **{"target_critic": critic, "actor": act, "transition": STEP, "noise": X},
        **{"discount": 0.9, "aggregate": "min"},
    },
    "td_loss": {
        **{"critic": critic, "target_critic": critic, "actor": act, "transition": STEP, "noise": X},
        **{"discount": 0.9, "aggregate": "min"},
    },
    "critic_loss": {"critic": critic, "transition": STEP, "target": 1.0},
    "expectile_loss": {"value": value, "obs": None, "q": 1.0, "expectile": 0.7},
    "q_loss": {"actor": act, "critic": critic, "obs": None, "noise": X, "aggregate": "mean"},
    "distill_loss": {"student": act, "teacher": act, "obs": None, "noise": X},
    "advantage_weight": {"q": 1.0, "v": 0.5, "temperature": 3.0, "cap": 100.0},
    "clipped": {"actor": act, "obs": None, "noise": X, "clip": (-1.0, 1.0)},
    "noiseless": {"actor": act, "obs": None, "noise": X},
    "bon_select": {"actor": act, "critic": critic, "obs": None, "noise": jnp.ones((3, 2)), "aggregate": "mean"},
    "best_of_n": {"actor": act, "critic": critic, "obs": None, "noise": jnp.ones((3, 2)), "aggregate": "mean"},
}
OTHER_TESTS = {
    "keep_memory",
    *("vp_schedule", "diffuse", "denoising_loss", "ddpm_sample", "score_distillation_loss"),
    *("noise_level", "consistency_function", "consistency_loss", "consistency_sample"),
}
"""Functions of diffusion and consistency models, whose own tests draw bad inputs."""

SIZES = {
    **{"obs_size": 3, "action_size": 2, "width": 4, "depth": 1, "blocks": 1, "ensemble": 2},
    **{"policy_width": 4, "policy_depth": 1},
}


def network_calls():
    """The constructors of `nn`, and calls of what they make."""
    inputs = {"obs": jnp.ones(3), "x": jnp.ones(2), "t": 0.25, "h": 0.5, "noise": jnp.ones(2), "action": jnp.ones(2)}
    inputs |= {"image": jnp.ones((8, 8, 1), jnp.uint8)}
    for name, kind in vars(nn).items():
        if inspect.isclass(kind) and issubclass(kind, eqx.Module):
            parameters = inspect.signature(kind).parameters
            sizes = SIZES | {"shape": (8, 8, 1), "channels": (2,)}
            arguments = {p.name: sizes.get(p.name, p.default) for p in parameters.values()} | {"key": KEY}
            yield f"nn.{name}", Call(kind, arguments)
            network = kind(**arguments)
            names = [p.name for p in inspect.signature(network).parameters.values() if p.default is p.empty]
            yield f"nn.{name}()", Call(network, {name: inputs[name] for name in names})
    seeing = nn.EnsembleCritic(3, 2, width=4, depth=1, condition_on_k=True, key=KEY)
    yield "nn.EnsembleCritic(condition_on_k=True)()", Call(seeing, {"obs": jnp.ones(3), "action": jnp.ones(2), "k": 4})


def algorithm_calls(name, module):
    config, group = small(module), optimizers(module)
    state, batch = start(module), transitions()
    drawn = module.draw(KEY, batch, config=config)
    given = {"state": state, "batch": batch, "draws": drawn, "config": config, "optimizers": group, "key": KEY}
    given |= {"networks": networks(module), "example": batch, "k": 2, "n": 2, "jumps_key": KEY, "sample": False}

    def call(function, **own):
        known = SIZES | given | own
        names = inspect.signature(function).parameters
        return {name: known.get(name, names[name].default) for name in names}

    yield f"{name}.Config", Call(module.Config, dataclasses.asdict(config))
    for function in [each for each in ("networks", "actor", "noise_shape") if hasattr(module, each)]:
        yield f"{name}.{function}", Call(getattr(module, function), call(getattr(module, function)))
    for function in ("init", "draw", "update"):
        yield f"{name}.{function}", Call(getattr(module, function), call(getattr(module, function)), True)
    for loss in losses(module):
        first = next(iter(inspect.signature(getattr(module, loss)).parameters))
        network = learner(module, loss, state)
        yield f"{name}.{loss}", Call(getattr(module, loss), call(getattr(module, loss), **{first: network}), True)


CALLS = {name: Call(getattr(shortcutrl, name), arguments) for name, arguments in FUNCTIONS.items()}
CALLS |= dict(network_calls())
for name, module in MODULES.items():
    CALLS |= dict(algorithm_calls(name, module))


def test_every_public_function_is_there():
    functions = {name for name, value in vars(shortcutrl).items() if inspect.isfunction(value)}
    assert functions == {*FUNCTIONS, *OTHER_TESTS}


@pytest.mark.parametrize("name", CALLS)
def test_the_calls_are_valid(name):
    CALLS[name].outcome()


# ------------------------------------------------------------------------------ the good among them

GOOD = {
    **for_each(["velocity", "teacher"], {"a velocity", "an actor"}),
    **for_each(["actor", "student", "policy", "critic", "target_critic"], {"an actor"}),
    **for_each(["value", "aggregate"], {"a value"}),
    **for_each(["flow_matching_times", "self_consistency_times"], {"None"}),
    **for_each(["obs", "next_obs"], ANYTHING),  # the functions that take them decide
    **for_each(["x", "mean", "action"], VECTORS),
    "noise": VECTORS | ROWS,
    **for_each(["t", "h", "discount", "expectile", "tau"], FRACTIONS),
    **for_each(["num_steps", "max_jumps", "flow_steps"], COUNTS),
    **for_each(["k", "n"], COUNTS | {"None"}),  # by default those of the config
    **for_each([*SIZES, "td_k", "q_k"], COUNTS),
    **for_each(["flow_matching_weight", "self_consistency_weight", "temperature", "cap"], POSITIVE | {"zero"}),
    **for_each(["next_value", "target", "q", "v"], REAL),
    **for_each(["reward", "mask"], REAL | FLAGS),
    "key": {"a key", "an old key"},
    "jumps_key": {"a key", "an old key", "None"},
    **for_each(["shape", "channels"], {"an empty tuple"}),
    "clip": {"None", "a list", "a tuple"},
    "transition": {"a transition"},
    "batch": {"a batch"},
    "example": {"a transition", "a batch"},
    "updates": REAL | FLAGS,
    "schedule_updates": COUNTS | {"a large integer"},
    "next_action": {"None"},
    "matmul_dtype": {"None", "a type"},
    "encoder": FUNCTIONS_OF_ANYTHING | {"None", "a type", "a velocity", "an actor", "a value"},  # not called yet
}
"""What each argument may be, of `BAD`; an argument that is not listed may be none of it."""

UNUSED = {
    "critic_loss": {"reward", "mask", "next_obs", "next_action"},
    "td_target": {"action", "next_action"},
    "td_loss": {"next_action"},
    "bellman_target": {"action", "next_action"},
}
"""The fields of a transition that a function does not look at."""


def is_good(name, argument, field, kind):
    default = CALLS[name].arguments[argument]
    if isinstance(default, bool):
        return kind in ("True", "False")
    if field is not None and (field in UNUSED.get(name, ()) or field.endswith("opt_state")):
        return True
    if argument == "example" and field not in (None, "obs", "action"):
        return True
    if argument == "state" and (kind == "None" or (callable(BAD[kind]) and not inspect.isclass(BAD[kind]))):
        return True  # a network, which not every function calls
    if name.endswith("noise_shape") and (argument == "k" or kind in ("a large integer", "a huge integer")):
        return True
    if name.endswith(".Config") and argument not in GOOD:
        return kind in (COUNTS if isinstance(default, int) else POSITIVE | {"zero"}) and not isinstance(default, str)
    if argument == "shape" and name == "nn.Impala":
        return False
    if argument == "k" and name.startswith("nn."):  # an input of the network
        return kind in POSITIVE
    if argument == "noise" and name == "nn.DeterministicPolicy()":  # which ignores it
        return True
    if kind == "a velocity" and argument == "policy":
        return name in ("sorl.policy_loss", "fbrac.policy_loss", "fawac.policy_loss", "ifql.policy_loss")
    return kind in GOOD.get(field or argument, ())


@ignore_warnings
def test_bad_inputs_are_named():
    assert_draws_end_well(CALLS, is_good, seed=0, count=400)


@pytest.mark.slow
@ignore_warnings
def test_ten_thousand_bad_inputs_are_named():
    assert_draws_end_well(CALLS, is_good, seed=1, count=10_000)


# ----------------------------------------------------------------------------- the harness notices


def hang(x):
    while True:
        pass


def wordy(x):
    raise ValueError("`x` must be a number. " + 30 * "Pass a number. ")


def obscure(x):
    raise TypeError("unsupported operand")


WRONG_FUNCTIONS = {
    "silent": (lambda x: 1.0, "silent: accepted"),
    "obscure": (obscure, "obscure: TypeError: unsupported operand"),
    "of another kind": (lambda x: {}["x"], "obscure: KeyError"),
    "endless": (hang, "endless"),
    "long": (wordy, "long: "),
}


@pytest.mark.parametrize(("function", "wrong"), WRONG_FUNCTIONS.values(), ids=WRONG_FUNCTIONS)
def test_a_function_that_ends_badly_is_caught(function, wrong):
    assert fault(Call(function, {"x": X}), {"x": None}, good=False, seconds=1).startswith(wrong)


def test_a_result_that_is_not_finite_is_caught():
    assert fault(Call(lambda x: x / 0, {"x": X}), {}, good=True) == "silent: not finite"
    assert fault(Call(lambda x: x, {"x": X}), {}, good=True) is None
