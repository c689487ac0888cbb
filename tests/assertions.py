"""How closely a law must hold, by how far a mutant must miss, and what draws must look like."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from scipy.stats import chisquare

WIDE = 1e8
"""By how much a mutant must exceed the bound that the law is held to (in float64)."""

ROUNDINGS = 16
"""How many rounding errors a law may accumulate."""

seeds = st.integers(0, 2**31 - 1)


def assert_to_rounding(error, rounding, *, slack=1.0):
    """`error` is at most a few times `rounding`, the size of the numbers that were rounded, in the dtype of `error`."""
    worst = float(np.max(np.abs(np.asarray(error, np.float64))))
    bound = slack * ROUNDINGS * float(jnp.finfo(error.dtype).eps) * float(rounding)
    assert worst <= bound, f"off by {worst:.2e}, {worst / bound * slack:.1e} times what rounding explains"


def assert_caught(law, *args):
    """`law` fails on a mutant, and by a wide margin."""
    with pytest.raises(AssertionError, match="times what rounding explains"):
        law(*args, slack=WIDE)


def each(mutants):
    """Parametrise a test by `mutant`, each of a dictionary by its name."""
    return pytest.mark.parametrize("mutant", mutants.values(), ids=mutants.keys())


def wide(*arrays):
    """The arrays in float64."""
    return tuple(jnp.asarray(a, jnp.float64) for a in arrays)


def assert_uniform(values, on):
    """Each of `on` is drawn, equally often, and nothing else is."""
    counts = np.array([np.sum(values == value) for value in on])
    assert counts.sum() == len(values), f"other values than {on}"
    assert len(on) == 1 or chisquare(counts).pvalue > 1e-4, f"not equally often: {counts} of {on}"


def assert_unrelated(*draws):
    """No two of the rows of numbers that vary are correlated."""
    rows = [np.ravel(draw) for draw in draws if np.std(draw) > 0]
    worst = np.abs(np.corrcoef(rows) - np.eye(len(rows))).max()
    assert worst < 5 / np.sqrt(len(rows[0])), f"related: a correlation of {worst}"


def first_line(error):
    return str(error.value).splitlines()[0]
