# SPDX-License-Identifier: Apache-2.0
"""What is a dictionary good for, on labelled activations? SAEBench's measures on any user's data.

    >>> import jax, jax.numpy as jnp
    >>> from jaxneuro.dictionaries import SparseCoder, TopK
    >>> from jaxneuro.dictionaries.saebench import sparse_probing
    >>> labels = jnp.arange(400) % 4
    >>> x = jnp.eye(4)[labels] + 0.1 * jax.random.normal(jax.random.key(0), (400, 4))
    >>> eye, zeros = jnp.eye(4), jnp.zeros(4)
    >>> dictionary = SparseCoder(W_enc=eye, W_dec=eye, b_enc=zeros, b_dec=zeros, activation=TopK(4))
    >>> sparse_probing(dictionary, x, labels, ks=(1, 2)).mean
    {1: 1.0, 2: 1.0}

Activations are [n, d], or [n, pos, d] with a mask (special tokens and padding out); labels are yours. Every measure
splits the examples by a seed, fits its probes on one part and reports the other.

| file | what | source |
|---|---|---|
| `probing.py` | `sparse_probing`: how well k latents tell a class | arXiv:2503.09532, arXiv:2305.01610 |
| `absorption.py` | `absorption`: classes hidden in more special latents; `absorbed` for one probe | arXiv:2409.14507 |
| `removal.py` | `scr`, `tpp`: what probes lose when latents are zeroed | arXiv:2411.18895, arXiv:2503.09532 |
| `logistic.py` | `logistic`: Newton's method; `sparse_logistics`: FISTA | |
| `pooling.py` | means over tokens, class tables, the split, balanced weights | |

The core measures (cross entropy, KL, L0, explained variance, density) are `jaxneuro.dictionaries.recovered` (with
`judges.kl_divergence`) and `reconstruction`.

**How far to trust them.** An audit (arXiv:2605.18229) found sparse probing the most reliable, and that SCR and TPP do
not pass validity checks. Report a dictionary of random directions and shuffled labels beside every number. Differences
from SAEBench, all on purpose: a mask is given, not guessed from zeros; yes and no are weighted to the same total
instead of subsampled; probes are fitted to their optimum, and no test example chooses an epoch.
"""

from ...docs import list_names as _list_names
from .absorption import Absorption as Absorption
from .absorption import Thresholds as Thresholds
from .absorption import absorbed as absorbed
from .absorption import absorption as absorption
from .logistic import Probe as Probe
from .logistic import logistic as logistic
from .logistic import sparse_logistics as sparse_logistics
from .pooling import pooled as pooled
from .probing import SparseProbing as SparseProbing
from .probing import sparse_probing as sparse_probing
from .removal import SpuriousRemoval as SpuriousRemoval
from .removal import TargetedPerturbation as TargetedPerturbation
from .removal import scr as scr
from .removal import tpp as tpp

_list_names(__name__)
