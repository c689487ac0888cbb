"""Diffusion models: for Gaussian data the law of each is known, and a wrong one is caught."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from assertions import assert_caught, assert_unrelated, each, seeds
from gaussian import SIZE, Affine, Data, close
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest, truncnorm, uniform

from shortcutrl import (
    ddpm_sample,
    denoising_loss,
    diffuse,
    nn,
    score_distillation_loss,
    vp_schedule,
)

SEED = 3
SCHEDULE = partial(vp_schedule, beta_max=10.0)
times = st.floats(0.01, 1)
rates = st.tuples(st.floats(0, 1), st.floats(1, 20))
dtypes = st.sampled_from(["float32", "float64"])
same = lambda x: x


# ------------------------------------------------------------------------------------- the schedule


@given(t=times, rates=rates, dtype=dtypes)
def test_the_schedule_is_the_integral_of_its_rate(t, rates, dtype):
    low, high = rates
    nodes, weights = np.polynomial.legendre.leggauss(8)
    rate = low + (high - low) * t * (nodes + 1) / 2
    expected = -np.sum(weights * rate) * t / 2
    got = vp_schedule(jnp.asarray(t, dtype), beta_min=low, beta_max=high)
    assert got.dtype == dtype
    close(got, expected, 20)


@pytest.mark.parametrize("steps", [1, 5, 50])
def test_the_schedule_of_idql(steps):
    """The product of 1 - β_i, where β_i = 1 - exp(-0.1 / T - 9.9 (2 i - 1) / (2 T²))."""
    i = np.arange(1, steps + 1)
    betas = 1 - np.exp(-0.1 / steps - 0.5 * (10 - 0.1) * (2 * i - 1) / steps**2)
    schedule = partial(vp_schedule, beta_max=10.0)
    np.testing.assert_allclose(np.exp(jax.vmap(schedule)(i / steps)), np.cumprod(1 - betas), rtol=1e-10)


def test_the_schedule_of_srpo():
    t = np.linspace(0.02, 0.98, 7)
    log_mean = -0.25 * t**2 * (20 - 0.1) - 0.5 * t * 0.1
    np.testing.assert_allclose(np.exp(jax.vmap(vp_schedule)(t) / 2), np.exp(log_mean), rtol=1e-12)


# ------------------------------------------------------------------------------------- the marginal


def assert_marginal(diffuse, seed, t, rates, dtype="float64", *, slack=1.0):
    """The mean and the variance of x_t."""
    schedule = partial(vp_schedule, beta_min=rates[0], beta_max=rates[1])
    rng = np.random.default_rng(seed)
    data = Data.random(rng)
    action, noise = data.exactly()
    arrays = (jnp.asarray(a, dtype) for a in (action, noise, t))
    x = jax.vmap(partial(diffuse, schedule=schedule), in_axes=(0, 0, None))(*arrays)
    signal = np.exp(-(rates[0] + (rates[1] - rates[0]) * t / 2) * t)
    assert x.dtype == dtype
    close(x.mean(axis=0), np.sqrt(signal) * data.mean, 10, slack=slack)
    close(x.var(axis=0), signal * data.std**2 + 1 - signal, 30, slack=slack)


@given(seed=seeds, t=times, rates=rates, dtype=dtypes)
def test_the_marginal(seed, t, rates, dtype):
    assert_marginal(diffuse, seed, t, rates, dtype)


def another_diffuse(signal_power=0.5, noise_power=0.5, shift=0.0, keep=lambda signal: 1 - signal):
    def diffuse(action, noise, t, *, schedule):
        signal = jnp.exp(schedule(jnp.maximum(t - shift, 0)))
        return signal**signal_power * action + keep(signal) ** noise_power * noise

    return diffuse


def test_the_copy_of_diffuse_is_right():
    assert_marginal(another_diffuse(), SEED, 0.4, (0.1, 10.0))


WRONG_DIFFUSE = {
    "no root of the signal": another_diffuse(signal_power=1.0),
    "no root of the noise": another_diffuse(noise_power=1.0),
    "a step early": another_diffuse(shift=0.1),
    "signal and noise exchanged": another_diffuse(keep=same),
}


@each(WRONG_DIFFUSE)
def test_a_wrong_marginal_is_caught(mutant):
    assert_caught(assert_marginal, mutant, SEED, 0.4, (0.1, 10.0))


def test_the_ends_of_the_diffusion():
    action, noise = jnp.array([0.5, -2.0]), jnp.array([1.0, 3.0])
    np.testing.assert_array_equal(diffuse(action, noise, 0.0, schedule=vp_schedule), action)
    np.testing.assert_allclose(diffuse(action, noise, 1.0, schedule=vp_schedule), noise, atol=0.02)


# ------------------------------------------------------------------------------------- denoising


@partial(jax.jit, static_argnums=0)
def expected_denoising(loss, denoiser, pairs, t):
    """The mean over pairs of an action and its noise, and its gradient."""

    def mean(denoiser):
        of = partial(loss, denoiser, None, schedule=SCHEDULE)
        return jax.vmap(of, in_axes=(0, 0, None))(*pairs, t).mean()

    return jax.value_and_grad(mean)(denoiser)


def exact_at(data, t, schedule):
    zero, one = np.zeros(SIZE), np.ones(SIZE)
    predict = data.denoiser(schedule)
    shift = predict(None, zero, t)
    return Affine(predict(None, one, t) - shift, shift)


def assert_minimum(loss, seed, t, *, slack=1.0):
    """Over the data and the noise, the expected loss has its minimum at the exact denoiser, and is what is left there.

    What is left is Var[z | x_t] = ᾱ std² / (ᾱ std² + 1 - ᾱ).
    """
    rng = np.random.default_rng(seed)
    data = Data.random(rng)
    value, grad = expected_denoising(loss, exact_at(data, t, SCHEDULE), data.exactly(), t)
    signal = np.exp(SCHEDULE(t))
    left = signal * data.std**2 / (signal * data.std**2 + 1 - signal)
    close(value, left.mean(), 1000, slack=slack)
    for leaf in jax.tree.leaves(grad):
        close(leaf, 0, 1000, slack=slack)


@given(seed=seeds, t=times)
def test_the_exact_denoiser_minimises_the_loss(seed, t):
    assert_minimum(denoising_loss, seed, t)


def another_denoising_loss(diffuse=diffuse, target=lambda action, noise: noise, reduce=jnp.mean):
    def loss(denoiser, obs, action, noise, t, *, schedule):
        x = diffuse(action, noise, t, schedule=schedule)
        return reduce(jnp.square(denoiser(obs, x, t) - target(action, noise)))

    return loss


def test_the_copy_of_the_denoising_loss_is_right():
    assert_minimum(another_denoising_loss(), SEED, 0.4)


WRONG_DENOISING = {
    "predicts the action": another_denoising_loss(target=lambda action, noise: action),
    "wrong sign": another_denoising_loss(target=lambda action, noise: -noise),
    "a sum over the dimensions": another_denoising_loss(reduce=jnp.sum),
} | {f"wrong marginal: {name}": another_denoising_loss(diffuse=wrong) for name, wrong in WRONG_DIFFUSE.items()}


@each(WRONG_DENOISING)
def test_a_wrong_denoising_loss_is_caught(mutant):
    assert_caught(assert_minimum, mutant, SEED, 0.4)


def test_the_exact_denoiser_is_the_score():
    """-√(1 - ᾱ) times the gradient of the log density of x_t."""
    data, t = Data.random(np.random.default_rng(SEED)), 0.3
    signal = jnp.exp(vp_schedule(t))

    def log_density(x):
        spread = signal * data.std**2 + 1 - signal
        return -(jnp.square(x - jnp.sqrt(signal) * data.mean) / spread).sum() / 2

    x = jnp.array([0.3, -1.2])
    score = -jnp.sqrt(1 - signal) * jax.grad(log_density)(x)
    np.testing.assert_allclose(data.denoiser(vp_schedule)(None, x, t), score, rtol=1e-12)


# ------------------------------------------------------------------------------------- score distillation


@partial(jax.jit, static_argnums=0)
def slopes(loss, denoiser, action, noise, t):
    """The gradient of a score distillation loss into the denoiser, and that into the action."""
    of = lambda denoiser, action: loss(denoiser, None, action, noise, t, schedule=vp_schedule)
    return jax.grad(of, argnums=(0, 1))(denoiser, action)


def assert_distillation(loss, seed, t, *, slack=1.0):
    """The gradient is (1 - ᾱ) (ε(x_t) - z); over the noise it is that of the known mean; none reaches the denoiser."""
    rng = np.random.default_rng(seed)
    data, action, noise = Data.random(rng), rng.normal(size=SIZE), rng.normal(size=SIZE)
    exact, signal = exact_at(data, t, vp_schedule), np.exp(vp_schedule(t))
    into, got = slopes(loss, exact, action, noise, t)
    x = np.sqrt(signal) * action + np.sqrt(1 - signal) * noise
    predicted = exact.slope * x + exact.shift
    close(got, (1 - signal) * (predicted - noise), 1000, slack=slack)
    opposite = slopes(loss, exact, action, -noise, t)[1]
    spread = signal * data.std**2 + 1 - signal
    mean = (1 - signal) * np.sqrt(1 - signal) * np.sqrt(signal) * (action - data.mean) / spread
    close((got + opposite) / 2, mean, 1000, slack=slack)
    for leaf in jax.tree.leaves(into):
        close(leaf, 0, 1.0, slack=slack)


@given(seed=seeds, t=times)
def test_score_distillation(seed, t):
    assert_distillation(score_distillation_loss, seed, t)


def another_distillation(
    weight=lambda signal: 1 - signal, baseline=same, stop=jax.lax.stop_gradient, sign=1, through=same
):
    def loss(denoiser, obs, action, noise, t, *, schedule):
        signal = jnp.exp(schedule(t))
        predicted = through(denoiser(obs, diffuse(action, noise, t, schedule=schedule), t))
        return sign * jnp.sum(stop(weight(signal) * (predicted - baseline(noise))) * action)

    return loss


def test_the_copy_of_score_distillation_is_right():
    assert_distillation(another_distillation(), SEED, 0.4)


WRONG_DISTILLATION = {
    "no weight": another_distillation(weight=lambda signal: 1),
    "the signal's weight": another_distillation(weight=same),
    "the root of the weight": another_distillation(weight=lambda signal: jnp.sqrt(1 - signal)),
    "no baseline": another_distillation(baseline=lambda noise: 0),
    "wrong sign": another_distillation(sign=-1),
    "a gradient through the denoiser": another_distillation(stop=same),
}


@each(WRONG_DISTILLATION)
def test_a_wrong_distillation_is_caught(mutant):
    assert_caught(assert_distillation, mutant, SEED, 0.4)


# ------------------------------------------------------------------------------------- ancestral sampling


def posterior(x, action, before, after):
    """The mean and the variance of q(x_s | x_t, a), by Bayes: the prior is q(x_s | a), the likelihood q(x_t | x_s)."""
    alpha = after / before  # of the signals at s and at t
    precision = 1 / (1 - before) + alpha / (1 - alpha)
    mean = (np.sqrt(before) * action / (1 - before) + np.sqrt(alpha) * x / (1 - alpha)) / precision
    return mean, 1 / precision


def assert_step(sample, seed, steps, *, slack=1.0):
    """From a start, the first of `steps` steps: the posterior's mean at the predicted action, and the variance β."""
    rng = np.random.default_rng(seed)
    data = Data.random(rng)
    start, noise = rng.normal(size=(2, SIZE))
    before, after = np.exp(SCHEDULE(1 - 1 / steps)), np.exp(SCHEDULE(1.0))
    predicted = data.denoiser(SCHEDULE)(None, start, 1.0)
    action = (start - np.sqrt(1 - after) * predicted) / np.sqrt(after)
    mean, variance = posterior(start, action, before, after)
    beta = 1 - after / before
    assert variance < beta
    expected = mean + np.sqrt(beta) * noise

    seen = []
    exact = data.denoiser(SCHEDULE)

    def spy(obs, x, t):
        seen.append((x, t))
        return exact(obs, x, t)

    rows = jnp.asarray([start, noise, *np.zeros((steps - 2, SIZE))])
    sample(spy, None, rows, steps=steps, schedule=SCHEDULE)
    (first, t), (second, s) = seen[:2]
    close(first, start, 1.0, slack=slack)
    close(t, 1.0, 1.0, slack=slack)
    close(second, expected, 1e4, slack=slack)
    close(s, 1 - 1 / steps, 1.0, slack=slack)


@given(seed=seeds, steps=st.sampled_from([2, 5]))
def test_a_step_of_the_sampler(seed, steps):
    assert_step(ddpm_sample, seed, steps)


@partial(jax.jit, static_argnames=("sample", "steps", "schedule"))
def moments(sample, data, steps, schedule=SCHEDULE):
    """The mean and the variance of samples that are affine in the noise."""
    sampler = partial(sample, data.denoiser(schedule), None, steps=steps, schedule=schedule)
    flat = jnp.zeros((steps, SIZE))
    jacobian = jax.jacobian(sampler)(flat)
    return sampler(flat), jnp.einsum("atb,atb->a", jacobian, jacobian)


def assert_distribution(sample, seed, steps, *, slack=1.0):
    """The mean and the variance of the samples, by recursion: each step is affine in x."""
    rng = np.random.default_rng(seed)
    data = Data.random(rng)
    signal = [np.exp(float(SCHEDULE(i / steps))) for i in range(steps + 1)]
    mean, variance = np.zeros(SIZE), np.ones(SIZE)
    for i in range(steps, 0, -1):
        alpha = signal[i] / signal[i - 1]
        slope = np.sqrt(1 - signal[i]) / (signal[i] * data.std**2 + 1 - signal[i])
        pull = (1 - alpha) / np.sqrt(1 - signal[i])
        mean = (mean - pull * slope * (mean - np.sqrt(signal[i]) * data.mean)) / np.sqrt(alpha)
        variance = (1 - pull * slope) ** 2 / alpha * variance + (1 - alpha) * (i > 1)

    got_mean, got_variance = moments(sample, data, steps)
    close(got_mean, mean, 1000, slack=slack)
    close(got_variance, variance, 1000, slack=slack)


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
@given(seed=seeds)
def test_the_distribution_of_samples(steps, seed):
    assert_distribution(ddpm_sample, seed, steps)


def another_sampler(variance="beta", shift=0, last=False, root=jnp.sqrt, level=0, scale=-0.5, clip_at=range(100)):
    def sample(denoiser, obs, noise, *, steps, schedule, clip=None):
        x = noise[0]
        for i in range(steps, 0, -1):
            t = jnp.asarray(i / steps)
            now, before = jnp.exp(schedule(t)), jnp.exp(schedule((i - 1) / steps))
            alpha = now / before
            beta = 1 - alpha
            used = now if level == 0 else alpha
            x = alpha**scale * (x - beta / root(1 - used) * denoiser(obs, x, jnp.maximum(t - shift / steps, 0.0)))
            posterior = beta * (1 - before) / (1 - now)
            spread = {"beta": beta, "posterior": posterior, "beta²": beta**2}[variance]
            if i > 1 or last:
                x = x + jnp.sqrt(spread) * noise[(steps + 1 - i) % steps]
            x = jnp.clip(x, *clip) if clip and i in clip_at else x
        return x

    return sample


def test_the_copy_of_the_sampler_is_right():
    assert_distribution(another_sampler(), SEED, 5)
    assert_step(another_sampler(), SEED, 5)


WRONG_SAMPLERS = {
    "the variance of the posterior": another_sampler(variance="posterior"),
    "no root of the variance": another_sampler(variance="beta²"),
    "times one step late": another_sampler(shift=1),
    "noise after the last step": another_sampler(last=True),
    "no root of the noise level": another_sampler(root=same),
    "alpha for the product of alphas": another_sampler(level=1),
    "no scaling": another_sampler(scale=0.0),
}


@each(WRONG_SAMPLERS)
def test_a_wrong_sampler_is_caught(mutant):
    assert_caught(assert_distribution, mutant, SEED, 5)


def test_standard_normal_data_is_sampled_exactly_but_for_the_last_step():
    """There β is the variance of x_s given x_t; the last step, without noise, gives the mean of the action."""
    _, variance = moments(ddpm_sample, Data(np.zeros(SIZE), np.ones(SIZE)), 5)
    np.testing.assert_allclose(variance, np.exp(SCHEDULE(1 / 5)), rtol=1e-10)


def test_many_steps_approach_the_data():
    data = Data(np.array([0.4, -0.7]), np.array([0.3, 0.9]))
    mean, variance = moments(ddpm_sample, data, 200, vp_schedule)
    np.testing.assert_allclose(mean, data.mean, atol=0.03)
    np.testing.assert_allclose(jnp.sqrt(variance), data.std, rtol=0.05)


@pytest.mark.parametrize("steps", [5, 20])
def test_the_sampler_clips_after_each_step(steps):
    data = Data(np.array([0.4, -3.0]), np.array([0.3, 0.9]))
    noise = 3 * jnp.asarray(np.random.default_rng(0).normal(size=(steps, SIZE)))

    def act(sample):
        return sample(data.denoiser(SCHEDULE), None, noise, steps=steps, schedule=SCHEDULE, clip=(-1.0, 1.0))

    np.testing.assert_allclose(act(ddpm_sample), act(another_sampler()), atol=1e-10)
    assert np.abs(act(ddpm_sample) - act(another_sampler(clip_at={1}))).max() > 0.01


# ------------------------------------------------------------------------------------- the network


def test_the_residual_network_is_the_published_one():
    """Per block 1024 x 256 twice; in: action, observation and 128 of the time; LayerNorm in each block."""
    network = nn.ResidualDenoiser(7, 3, key=jax.random.key(0))
    shapes = [leaf.shape for leaf in jax.tree.leaves(eqx.filter(network, eqx.is_array))]
    block = [(256,), (256,), (256, 1024), (1024,), (1024, 256), (256,)]
    time = [(32,), (64, 128), (128,), (128, 128), (128,)]
    assert shapes == [*time, (138, 256), (256,), *3 * block, (256, 3), (3,)]


def test_the_residual_network_starts_as_the_published_one():
    """Glorot-uniform layers, LeCun-normal ones in the blocks, standard normal frequencies, and biases of zeros."""
    make = lambda key: nn.ResidualDenoiser(4, 4, width=16, blocks=2, key=key)
    networks = eqx.filter_vmap(make)(jax.random.split(jax.random.key(0), 64))
    outer = *networks.time, networks.first, networks.last
    inner = [layer for block in networks.blocks for layer in (block.wide, block.narrow)]
    bounds = [np.sqrt(6 / sum(layer.weight.shape[-2:])) for layer in outer]
    scales = [layer.weight.shape[-2] ** -0.5 / truncnorm(-2, 2).std() for layer in inner]
    laws = *(uniform(-bound, 2 * bound) for bound in bounds), *(truncnorm(-2, 2, scale=scale) for scale in scales)
    for layer, law in zip((*outer, *inner), laws, strict=True):
        assert kstest(np.ravel(layer.weight), law.cdf).pvalue > 1e-3
        assert not layer.bias.any()
    assert kstest(np.ravel(networks.frequencies), "norm").pvalue > 1e-3
    assert all((block.norm.weight == 1).all() and not block.norm.bias.any() for block in networks.blocks)
    assert_unrelated(*(layer.weight for layer in inner))


def test_the_residual_network_computes_what_it_says():
    network = nn.ResidualDenoiser(2, 2, width=8, blocks=2, key=jax.random.key(0))
    network = jax.tree.map(lambda leaf: leaf + 0.01 if eqx.is_array(leaf) else leaf, network)
    obs, x, t = np.array([0.3, -0.2]), np.array([1.0, 2.0]), 0.3
    mish = lambda x: x * np.tanh(np.log1p(np.exp(x)))
    dense = lambda layer, x: x @ np.asarray(layer.weight, np.float64) + np.asarray(layer.bias, np.float64)
    angle = 2 * np.pi * t * np.asarray(network.frequencies, np.float64)
    hidden, out = network.time
    embedding = dense(out, mish(dense(hidden, np.concatenate([np.cos(angle), np.sin(angle)]))))
    h = dense(network.first, np.concatenate([x, obs, embedding]))
    for block in network.blocks:
        normal = (h - h.mean()) / np.sqrt(h.var() + 1e-6) * np.asarray(block.norm.weight) + np.asarray(block.norm.bias)
        h = h + dense(block.narrow, mish(dense(block.wide, normal)))
    expected = dense(network.last, mish(h))
    np.testing.assert_allclose(network(jnp.asarray(obs), jnp.asarray(x), t), expected, rtol=1e-5)


# ------------------------------------------------------------------------------------- bad input

X = jnp.ones(2)
KEEP = lambda obs, x, t: x
BAD = {
    "a time that is too late": (lambda: diffuse(X, X, 1.5, schedule=vp_schedule), ValueError, "`t` must be in"),
    "a negative rate": (lambda: vp_schedule(0.5, beta_max=-1.0), ValueError, "`beta_max` must be finite"),
    "no function for a schedule": (lambda: diffuse(X, X, 0.5, schedule=0.5), TypeError, "`schedule` must be"),
    "a schedule of two numbers": (
        lambda: diffuse(X, X, 0.5, schedule=lambda t: jnp.stack([t, t])),
        ValueError,
        "`schedule` must return shape",
    ),
    "noise of another length": (
        lambda: ddpm_sample(KEEP, None, jnp.ones((4, 2)), steps=5, schedule=vp_schedule),
        ValueError,
        r"`noise` must have shape \(5, ...\)",
    ),
    "steps that no noise has": (
        lambda: ddpm_sample(KEEP, None, jnp.ones((4, 2)), steps=10**9, schedule=vp_schedule),
        ValueError,
        "`noise` must have shape",
    ),
    "no steps": (
        lambda: ddpm_sample(KEEP, None, jnp.ones((1, 2)), steps=0, schedule=vp_schedule),
        ValueError,
        "`steps` must be an integer of at least 1",
    ),
    "a denoiser of another shape": (
        lambda: denoising_loss(lambda obs, x, t: x[:1], None, X, X, 0.5, schedule=vp_schedule),
        ValueError,
        "`denoiser` must return shape",
    ),
    "a denoiser that takes no time": (
        lambda: denoising_loss(lambda obs, x: x, None, X, X, 0.5, schedule=vp_schedule),
        TypeError,
        "`denoiser` cannot be called with 3",
    ),
    "no blocks": (
        lambda: nn.ResidualDenoiser(1, 1, blocks=0, key=jax.random.key(0)),
        ValueError,
        "`blocks` must be an integer",
    ),
}


@pytest.mark.parametrize(("call", "kind", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_refused_by_name(call, kind, message):
    with pytest.raises(kind, match=f"^{message}"):
        call()
