# SPDX-License-Identifier: Apache-2.0
"""Convolutional networks, ResNet and DenseNet: one configuration, one pure function, a tap at every stage and block.

    >>> import jax
    >>> from jaxneuro.models.convnet import ConvModel, ConvNet, Residual, init_convnet
    >>> from jaxneuro.taps import capture
    >>> cfg = ConvNet(stem=8, depths=(2,), blocks=Residual(bottleneck=False, widths=(8,), mids=(8,)), n_classes=5)
    >>> model = ConvModel(cfg, init_convnet(cfg, jax.random.key(0)))  # or models.load("timm/resnet50.a1_in1k")
    >>> logits, acts = jax.jit(capture(model.apply, ["stage0.blocks.*.post"]))(model.weights, model.example())
    >>> acts["stage0.blocks.*.post"].shape
    (2, 1, 16, 16, 8)

Pictures and maps are [batch, row, column, channel]; padding is symmetric, as torch pads. Batch norm is inference's,
with running statistics. The equal blocks of a ResNet's stage are stacked and scanned: one body is compiled for up to 35
blocks (on a CPU ResNet-152 compiles in 2 s of its time instead of 20, and runs no slower). Those of a DenseNet each see
more channels than the one before, so they are a Python loop (DenseNet-121: 6 s, DenseNet-201: 11 s).

| site | what |
|---|---|
| `stem.conv`, `stem.norm`, `stem.act`, `stem` | the first convolution, its norm, its activation; after the max pool |
| `stage0.blocks.*.pre` | what a block of stage 0 reads; the layer of the site is the block |
| `stage0.blocks.*.conv1`, `.norm1`, `.act1`, `.conv2` ... | inside it, in the order of the block |
| `stage0.blocks.0.shortcut` | ResNet: the projected input, where a block has one |
| `stage0.blocks.*.sum`, `.post` | ResNet: before and after the last activation |
| `stage0.blocks.*.post` | DenseNet: all channels so far; `.conv2` are the new ones |
| `stage0.transition` | DenseNet: after the pool between stages |
| `final`, `pooled`, `logits` | the last map, its mean, the scores of classes |

Maps have the axes batch, row, column, channel; `pooled` batch, channel; `logits` batch, class. What the blocks of a
stage have in different shapes (a ResNet's `pre`, a DenseNet's `pre` and `post`) is asked for one block at a time:
`stage1.blocks.0.pre`.

| file | what | source |
|---|---|---|
| `layout.py` | the configuration; leaves and shapes; random weights | arXiv 1512.03385, 1608.06993, 1611.05431 |
| `forward.py` | the forward pass; norms folded into convolutions | arXiv 1712.05877 |
| `families.py` | names of tensors and config keys | transformers, torchvision, timm |
| `checkpoint.py`, `module.py` | folders, both ways; the nnx module | |

To add an architecture of timm: a row in `families.py`; one with other blocks: a dataclass beside `Residual` with its
leaves in `layout.py` and its stage in `forward.py`, and a case in scripts/make_convnet_fixtures.py.

Not here: training (batch statistics), timm's variants with another stem, shortcut, pool or attention (resnet50d,
seresnet50, resnetv2_50 ...), dilation.
"""

from ...docs import list_names as _list_names
from .checkpoint import load_convnet as load_convnet
from .checkpoint import save_convnet as save_convnet
from .families import CONVNETS as CONVNETS
from .families import convnet_from_hf as convnet_from_hf
from .families import convnet_to_hf as convnet_to_hf
from .families import is_convnet as is_convnet
from .forward import convnet as convnet
from .forward import fold_batch_norm as fold_batch_norm
from .layout import ConvNet as ConvNet
from .layout import Dense as Dense
from .layout import Residual as Residual
from .layout import convnet_shapes as convnet_shapes
from .layout import init_convnet as init_convnet
from .module import ConvModel as ConvModel

_list_names(__name__)
