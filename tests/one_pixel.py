"""A network of one pixel, and its training in one call: where the answer is known."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax


class Net(nn.Module):
    """v of one pixel."""

    @nn.compact
    def __call__(self, z_t, logsnr_t, *told):
        """Takes z_t of shape [batch, 1], and of everything else one value each."""
        angle = jnp.arctan(jnp.exp(-0.5 * logsnr_t))
        others = (angle, jnp.sin(8.0 * angle), jnp.cos(8.0 * angle), *told)
        h = jnp.concatenate([z_t, *(x[:, None] for x in others)], axis=1)
        for _ in range(3):
            h = nn.silu(nn.Dense(128)(h))
        return nn.Dense(1)(h)


def descend(loss, params, num_updates, key):
    """The parameters after so many updates on loss(params, key)."""
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, num_updates))

    def update(carry, key):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, key), state)
        return (optax.apply_updates(params, updates), state), None

    start = (params, optimizer.init(params))
    return jax.lax.scan(update, start, jax.random.split(key, num_updates))[0][0]
