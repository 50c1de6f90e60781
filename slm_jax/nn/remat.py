"""What a scanned layer keeps for the backward pass, and what that computes again."""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
from jax.ad_checkpoint import checkpoint_name

# none: everything is kept. dots: products with weights. attention: queries, keys, values and what
# attention read of them, in place of which the MLP, most of a layer's memory, is computed again.
# offload: these and the MLP's inner activations, in the memory of the host. full: nothing but the
# layer's input.
Remat = Literal["none", "dots", "attention", "offload", "full"]

_ATTENTION, _MLP, _PRODUCT = "attention", "mlp", "product"
_policies = jax.checkpoint_policies
_ignored: contextvars.ContextVar[bool] = contextvars.ContextVar("ignored", default=False)
POLICIES = {
    "none": None,
    "dots": _policies.save_from_both_policies(
        _policies.dots_with_no_batch_dims_saveable, _policies.save_only_these_names(_PRODUCT)
    ),
    "attention": _policies.save_only_these_names(_ATTENTION),
    "offload": _policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[_ATTENTION, _MLP],
        offload_src="device",
        offload_dst="pinned_host",
    ),
    "full": _policies.nothing_saveable,
}

# For functions whose inside costs less to compute again than to write and read: of these the
# backward pass keeps what goes in, whatever the policy.
recomputed = functools.partial(jax.checkpoint, prevent_cse=False)


def layer(function: Callable[..., Any], remat: Remat) -> Callable[..., Any]:
    """The function of a scanned layer, of which the backward pass keeps what `remat` says."""
    if remat == "none" or _ignored.get():
        return function
    return jax.checkpoint(function, policy=POLICIES[remat], prevent_cse=False)


@contextlib.contextmanager
def ignored() -> Iterator[None]:
    """Traces layers inside as with "none", whatever they say: nothing is computed again."""
    token = _ignored.set(True)
    try:
        yield
    finally:
        _ignored.reset(token)


def of_attention(x: jax.Array) -> jax.Array:
    """Marks queries, keys, values, or what attention read, [..., H, h]."""
    return checkpoint_name(x, _ATTENTION)


def of_mlp(x: jax.Array) -> jax.Array:
    """Marks inner activations of an MLP, before their nonlinearity, [..., F]."""
    return checkpoint_name(x, _MLP)


def of_product(x: jax.Array) -> jax.Array:
    """Marks a product with weights that has a gradient rule of its own, which hides it."""
    return checkpoint_name(x, _PRODUCT)
