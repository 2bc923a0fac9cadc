# SPDX-License-Identifier: Apache-2.0
"""What a layer may be instead of attention and MLP: a recurrence through time, described by one frozen dataclass.

    Config(n_layers=2, d_model=8, d_vocab=32, mixer=Mamba(d_inner=16, d_state=4, dt_rank=1))

Protocol of a mixer: its fields are its sizes and switches; `leaves()` and `sizes()` are its part of `layout`,
`starts` of `init`; `empty(batch, ...)` is its state before the first token, and

    y, state = mixer.mix(w, x, at, state)        x, y [batch, pos, d_model]; state None: before the first token

continues from a state over any number of tokens, so the same function is the whole sequence, a part of it, and one
step of generation. Norms and the residual stream are `stack.py`'s.

| file | mixer | fast form | source |
|---|---|---|---|
| `mamba.py` | `Mamba` | associative scan inside chunks | arXiv 2312.00752 |
| `mamba2.py` | `Mamba2` | matrix products inside chunks (SSD) | arXiv 2405.21060 |
| `bdh.py` | `Bdh` | causal linear attention in chunks | arXiv 2509.26507 |
| `parts.py` | convolution, chunks, the explicit recurrence | | |
| `stack.py` | the scan over layers | | |

Sites are `blocks.mixer.*`. `blocks.mixer.state` holds the state that each token reads; it exists only while somebody
asks for it, and then all states are computed one token after another. An edit of it changes what is read there, not
the states after it: for those edit `x`, `conv`, `B` or `dt`, or step from an edited state.

To add one: a file with its dataclass; its name in `Mixer` below; a row in `families/ssm.py`; a parity case.
"""

from ...docs import list_names as _list_names
from .bdh import Bdh as Bdh
from .mamba import Mamba as Mamba
from .mamba2 import Mamba2 as Mamba2
from .stack import MixerState as MixerState
from .stack import empty_state as empty_state
from .stack import mix_layers as mix_layers

type Mixer = Mamba | Mamba2 | Bdh

_list_names(__name__)
