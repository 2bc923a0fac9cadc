# SPDX-License-Identifier: Apache-2.0
"""What is inside a function, and what if it were different? Name a value, read it, replace it.

    >>> def model(x):
    ...     layer = lambda x, i: (tap(jnp.tanh(x), "blocks.post", layer=i, axes=("batch", "neuron")), None)
    ...     return jax.lax.scan(layer, x, jnp.arange(3))[0]
    >>> x = jnp.ones((1, 2))
    >>> out, acts = jax.jit(capture(model, ["blocks.*.post", "blocks.1.post"]))(x)
    >>> acts["blocks.*.post"].shape, acts["blocks.1.post"].shape
    ((3, 1, 2), (1, 2))
    >>> jax.jit(intervene(model, [zero("blocks.1.post", neuron=0)]))(x)[0, 0]
    Array(0., dtype=float32)

`tap` is an identity primitive that a model calls at each of its sites; it leaves nothing in the compiled program.
`capture` and `intervene` transform the program, so they go with jit (inside and outside), grad, vmap, scan, cond,
while, checkpoint, shard_map and pmap, in any order, and with each other: inner ones are nearer the model. Wrap them
in `jax.jit`: without, every call stages the function anew (about 20 ms) and runs what was compiled for an equal
program. `sites(fn, *args)` lists what there is.

    "blocks.5.mlp.post"    one layer, no layer axis           "blocks.*.mlp.post"       a leading layer axis
    "blocks.2,5.mlp.post"  these layers, nothing else kept    "blocks.5.mlp.post@grad"  the gradient there
    "blocks.5.mlp.hook_post"  TransformerLens' spelling, the same site      "*"  every site

    capture(fn, {site: reducer})                 reduce where the value is; a Partial's arguments may be traced
    intervene(fn, edits)                         zero, set_to, add, scale, clamp, patch, apply_fn
    capture(jax.grad(loss), ["...@grad"])        every layer's gradient in one backward pass
    grad(intervene(fn, add(site, v)))            the edited function's; intervene(grad(fn), ...) is straight-through
    sweep(one, points)                           thousands of edits as one program, a chunk at a time

**Protocol.** An `Edit` is a pytree: site and operation are fixed, values and selectors (`layer=`, `pos=`, `neuron=`
...) are leaves, so they can be arguments of a compiled function, vmapped, differentiated. What cannot be done raises
`UserError` when the function is called, before anything runs.

| file | what |
|---|---|
| `primitive.py` | `tap`, its derivative and batching rules, `wants`, `scope` |
| `names.py`, `definitions.py` | site strings; what each site of the library's models is, with its formula |
| `transforms.py`, `listing.py` | `capture`, `intervene`, `sweep`; `sites` |
| `edits.py`, `views.py` | edits; selectors and broadcasting, by the names of axes |
| `staging.py`, `collect.py` | from a function to its program; from requests to what is read, and back |
| `survey.py`, `constants.py` | where a program reaches its sites; which layers a scan visits |
| `checks.py`, `ranges.py` | requests against what is there; indices that are traced |
| `rewrite.py`, `rules.py` | running a program with sites read and edited; one rule per kind of equation |
| `compiled.py`, `content.py` | calls outside of jit: equal programs compile once, 64 are kept |
| `reprs.py` | how objects are shown in a REPL |
| `reading.py` | how equations are read: all that may break with a JAX release |

**To add an edit**: (1) write its pointwise function beside `_add`; (2) write its constructor; (3) export it here; (4)
add rows to `EACH` in `tests/taps/test_edits.py`. **To support another higher-order primitive**: read it in
`reading.py`, give it a row in `rules.RULES`, and in `constants.py` if layer numbers pass through it.

**Not here**: the function is staged, so Python branches on values fail as under jit; the state of a module that is
mutated inside is dropped; no host callbacks; names of profiler scopes around rebuilt equations are lost; memory layouts
fixed by a jit inside are refused.
"""

from ..docs import list_names as _list_names
from .edits import Edit as Edit
from .edits import add as add
from .edits import apply_fn as apply_fn
from .edits import clamp as clamp
from .edits import patch as patch
from .edits import scale as scale
from .edits import set_to as set_to
from .edits import zero as zero
from .listing import Site as Site
from .listing import SiteTable as SiteTable
from .listing import sites as sites
from .primitive import scope as scope
from .primitive import tap as tap
from .primitive import wants as wants
from .transforms import capture as capture
from .transforms import intervene as intervene
from .transforms import sweep as sweep

_list_names(__name__)
