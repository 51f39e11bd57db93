"""Convolutions and maximum pooling that are fast on every platform.

XLA's CPU backend runs a grouped convolution as a slow scalar loop, and its gradients slower still. There, the same sums
are written as k*k shifted multiply-adds, which it turns into vector code over the channels; the kernel gradient of an
ordinary convolution is a matrix product with patches, a few images at a time. GPU and TPU have good kernels of their
own and keep the ordinary forms. `jax.lax.platform_dependent` decides when the program is
lowered, not from the default backend: a program compiled on a CPU machine for TPUs gets the TPU's form.
"""

from cftjax.backbones.convolutions.dense import conv, ordinary_conv, pointwise_conv
from cftjax.backbones.convolutions.depthwise import convolution, depthwise_conv
from cftjax.backbones.convolutions.pooling import max_pool_3x3, ordinary_maxima
from cftjax.backbones.convolutions.windows import Padding, grid, in_memory, pad_amounts

__all__ = [
    "Padding",
    "conv",
    "convolution",
    "depthwise_conv",
    "grid",
    "in_memory",
    "max_pool_3x3",
    "ordinary_conv",
    "ordinary_maxima",
    "pad_amounts",
    "pointwise_conv",
]
