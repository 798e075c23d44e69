"""Layers with a static rate: model slicing spelt out by hand, for Flax Linen.

For those who write their own network, and the independent oracle that the tests compare
the transformation with. Nothing here knows of plans or traces: a layer holds its
parameters at full width and uses the leading part that the rate keeps (Model Slicing,
Cai et al., PVLDB 2019, arXiv 1904.01831, sections 3.1 and 3.2).

`init` at rate 1 gives the full parameters; then every layer of a call gets the same
rate. The first layer takes its input whole, the last one gives its output whole:

>>> import jax
>>> import jax.numpy as jnp
>>> from flax import linen
>>> from mslice_jax import nn

>>> class Mlp(linen.Module):
...     @linen.compact
...     def __call__(self, x, rate=1.0):
...         x = jax.nn.relu(nn.Dense(64, slice_inputs=False)(x, rate))
...         x = jax.nn.relu(nn.Dense(64)(x, rate))
...         return nn.Dense(10, slice_outputs=False)(x, rate)

>>> mlp, x = Mlp(), jnp.ones((2, 16))
>>> variables = mlp.init(jax.random.key(0), x)
>>> mlp.apply(variables, x, rate=0.25).shape
(2, 10)

>>> class Cnn(linen.Module):
...     @linen.compact
...     def __call__(self, x, rate=1.0):
...         x = nn.Conv(32, (3, 3), slice_inputs=False)(x, rate)
...         x = jax.nn.relu(nn.GroupNorm(num_groups=8)(x, rate))
...         x = nn.Conv(64, (3, 3), strides=(2, 2))(x, rate)
...         x = jax.nn.relu(nn.GroupNorm(num_groups=8)(x, rate))
...         return nn.Dense(10, slice_outputs=False)(x.mean((1, 2)), rate)

>>> cnn, images = Cnn(), jnp.ones((2, 8, 8, 3))
>>> variables = cnn.init(jax.random.key(0), images)
>>> cnn.apply(variables, images, rate=0.5).shape
(2, 10)

Two things a width cannot tell, so a layer has to be told: after a concatenation of
narrow branches give the full sizes of the parts, `in_features=(32, 64)`; and do not
flatten images into channels, take a mean (`upgrade` does both by itself).
"""

from .attention import MultiHeadAttention as MultiHeadAttention
from .linear import Conv as Conv
from .linear import Dense as Dense
from .linear import Embed as Embed
from .norms import BatchNorm as BatchNorm
from .norms import GroupNorm as GroupNorm
from .norms import LayerNorm as LayerNorm
from .norms import RMSNorm as RMSNorm
from .recurrent import GRUCell as GRUCell
from .recurrent import LSTMCell as LSTMCell
