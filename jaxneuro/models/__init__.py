# SPDX-License-Identifier: Apache-2.0
"""Which pretrained networks can be opened, and how is one run? One generic transformer, one row per family.

    >>> import jax
    >>> from jaxneuro.models import Config, Transformer, init
    >>> cfg = Config(n_layers=2, d_model=8, n_heads=4, n_kv_heads=2, d_head=2, d_mlp=16, d_vocab=32, n_ctx=64)
    >>> model = Transformer(cfg, init(cfg, jax.random.key(0)))       # or load("a folder or a Hub name")
    >>> model(jax.numpy.zeros((1, 5), "int32")).shape
    (1, 5, 32)
    >>> resid = model.apply(model.weights, jax.numpy.zeros((1, 5), "int32"), stop_at=1)   # the pure function

Protocol: `forward(weights, tokens, *, cfg, mask, stop_at, start_at, resid, remat, cache, ...)` over a nested dict of
arrays whose leaves under "blocks" have a leading layer axis; `Config` holds what changes the mathematics, `layout(cfg)`
says which leaves there are. Every value a method may want goes through `jaxneuro.taps.tap`;
`model.sites()` lists them, `help(jaxneuro.taps.definitions)` has their formulas.

| file | what | source |
|---|---|---|
| `config.py` | the switches | |
| `layout.py` | leaves, their axes and shapes; random weights | |
| `transformer.py` | forward | arXiv 1706.03762, 1810.04805, 2302.13971 |
| `attention.py`, `fused.py` | one attention, a table of forms that compute it | |
| `positions.py` | which position each column of a padded batch has | |
| `cross.py` | attention of a decoder to what its encoder read | arXiv 1706.03762 |
| `cache.py` | keys and values, or a state, of the text so far | |
| `scan.py`, `runs.py` | layers of a stack; stacks whose layers have different leaves | |
| `moe.py` | mixtures of experts, three forms | arXiv 2101.03961, 2401.04088 |
| `mixers/` | Mamba, Mamba-2, BDH instead of attention | arXiv 2312.00752, 2405.21060, 2509.26507 |
| `stepping.py` | `step`: a model with a mixer goes on from a state | |
| `relative.py` | T5's relative positions | arXiv 1910.10683 |
| `rope.py` | rotary positions and six ways to stretch them | arXiv 2104.09864, 2309.00071, 2402.13753 |
| `families/llama.py` | llama, mistral, qwen2, qwen3, gemma, gemma2, gemma3_text, phi3 | transformers |
| `families/gpt.py` | gpt2, gptj, gpt_neox, opt, phi | transformers |
| `families/bert.py` | bert, roberta, xlm-roberta | transformers |
| `families/moe.py` | mixtral, qwen3_moe | transformers |
| `families/t5.py` | t5, mt5, umt5, and the encoders alone | transformers |
| `families/ssm.py` | mamba, mamba2, bdh | transformers; BDH: its authors' module |
| `families/vision.py` | vit, deit, dinov2 with and without registers | transformers |
| `families/towers.py` | towers of CLIP and SigLIP | transformers |
| `pair.py` | CLIP and SigLIP whole | arXiv 2103.00020, 2303.15343 |
| `pooling.py`, `classify.py`, `pictures.py` | `pooled`: one vector of a picture or text; classes; other sizes | |
| `convnet/` | ResNet, DenseNet, of transformers and timm | arXiv 1512.03385, 1608.06993 |
| `patches.py` | patches hidden behind the mask token | arXiv 2304.07193 |
| `hf_config.py`, `convert.py`, `match.py`, `reader.py`, `checkpoint.py` | Hugging Face folders, both ways | |
| `sharding.py` | which axis goes where on a mesh | |
| `quantised.py` | matrices in eight bits, for inference | |
| `remat.py` | what a layer keeps for the backward pass | |
| `logits.py` | loss and statistics of logits that are never whole in memory | |
| `module.py`, `owner.py` | the nnx module with `apply`, `encode`, `pooled`; the linen adapter | |
| `loss.py` | next-token loss | |

To add a family: (1) a row in a table of `families/`: its config keys with transformers' defaults, its tensors with
their axes spelled by name; (2) if it computes something new, a field of `Config` and the line of `transformer.py` that
reads it, with its leaves in `layout.py`; (3) a tiny model in `scripts/make_parity_fixtures.py`, run it; (4) a line in
the mutation table of tests/parity if there is a new switch.

Parity with transformers on tiny models with every parameter perturbed: logits and each layer's residual within 1e-5.

Not here: tokenizers and pictures' processors (data), generation (inference), training loops.
"""

from ..docs import list_names as _list_names
from .cache import Cache as Cache
from .cache import Carried as Carried
from .cache import init_cache as init_cache
from .checkpoint import load as load
from .checkpoint import save_pretrained as save_pretrained
from .config import Config as Config
from .config import Experts as Experts
from .config import Image as Image
from .convnet import ConvModel as ConvModel
from .convnet import ConvNet as ConvNet
from .convnet import Dense as Dense
from .convnet import Residual as Residual
from .convnet import fold_batch_norm as fold_batch_norm
from .convnet import init_convnet as init_convnet
from .families import FAMILIES as FAMILIES
from .families import Family as Family
from .hf_config import config_from_hf as config_from_hf
from .hf_config import config_to_hf as config_to_hf
from .layout import Weights as Weights
from .layout import init as init
from .layout import layout as layout
from .layout import shapes as shapes
from .logits import logit_statistics as logit_statistics
from .logits import loss_fn as loss_fn
from .logits import map_logits as map_logits
from .logits import model_loss as model_loss
from .loss import token_loss as token_loss
from .mixers import Bdh as Bdh
from .mixers import Mamba as Mamba
from .mixers import Mamba2 as Mamba2
from .mixers import MixerState as MixerState
from .mixers import empty_state as empty_state
from .module import Transformer as Transformer
from .module import to_linen as to_linen
from .pair import Pair as Pair
from .pair import embedding as embedding
from .pair import load_pair as load_pair
from .pair import save_pair as save_pair
from .pair import similarity as similarity
from .pictures import resized as resized
from .pooling import pool as pool
from .pooling import pooled as pooled
from .pooling import project as project
from .positions import positions as positions
from .quantised import Quantised as Quantised
from .quantised import quantise as quantise
from .relative import RelativeBias as RelativeBias
from .rope import Rope as Rope
from .sharding import shardings as shardings
from .stepping import step as step
from .transformer import encode as encode
from .transformer import forward as forward
from .transformer import unembedding as unembedding

_list_names(__name__)
