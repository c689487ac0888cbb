"""Actors made of other actors."""

import jax
import jax.numpy as jnp

from shortcutrl import _checks
from shortcutrl._call import action_of
from shortcutrl._typed import typed
from shortcutrl._types import Action, Actor, Clip, Noise, Obs


@typed
def clipped(actor: Actor, obs: Obs, noise: Noise, *, clip: Clip) -> Action:
    """Act as `actor` does, within bounds: `clip(actor(obs, noise), low, high)`.

    `functools.partial(clipped, actor, clip=(-1.0, 1.0))` is an [`Actor`][shortcutrl.Actor].

    **Arguments:**

    - `actor`: an [`Actor`][shortcutrl.Actor]. Gradients flow into it, except where it is clipped.
    - `obs`: one observation, any pytree.
    - `noise`: the actor's noise.
    - `clip`: `(low, high)`, two numbers or two arrays of the action's shape. `None` leaves the action unchanged.

    **Returns:** the action, shape `(action,)`.

    **Raises:** `ValueError` for an empty `clip`, or for an `actor` that returns another shape.

    !!! Example

        ```python
        import jax.numpy as jnp
        from shortcutrl import clipped

        action = clipped(lambda obs, noise: 3 * noise, None, jnp.array([-1.0, 0.1]), clip=(-1.0, 1.0))
        assert jnp.allclose(action, jnp.array([-1.0, 0.3]))
        ```
    """
    action = action_of("actor", actor, obs, noise)
    bounds = _checks.as_clip("clip", clip, action)
    return action if bounds is None else jnp.clip(action, *bounds)


@typed
def noiseless(actor: Actor, obs: Obs, noise: Noise) -> Action:
    """Act as `actor` does with all its noise set to zero: a Gaussian acts by its mean.

    `functools.partial(noiseless, actor)` is an [`Actor`][shortcutrl.Actor].

    **Arguments:**

    - `actor`: an [`Actor`][shortcutrl.Actor]. Gradients flow into it.
    - `obs`: one observation, any pytree.
    - `noise`: the actor's noise, of which only the shapes are used.

    **Returns:** the action, shape `(action,)`.

    **Raises:** `ValueError` for an `actor` that returns another shape.

    !!! Example

        ```python
        import jax.numpy as jnp
        from shortcutrl import noiseless

        gaussian = lambda obs, noise: obs + noise
        assert noiseless(gaussian, jnp.array([0.5]), jnp.array([2.0])) == 0.5
        ```
    """
    _checks.check_numbers("noise", noise)
    return action_of("actor", actor, obs, jax.tree.map(jnp.zeros_like, noise))
