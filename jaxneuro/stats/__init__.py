# SPDX-License-Identifier: Apache-2.0
"""What would be found if the labels meant nothing? Permutations that respect documents, and what survives them.

    >>> import numpy as np
    >>> from jaxneuro.stats import permuted_labels
    >>> group, document = np.array([0, 0, 0, 1, 1, 1]), np.array([7, 7, 8, 9, 9, 9])
    >>> labels = permuted_labels(group, 20, seed=0, block=document)                # [item, 1 + n], the truth first
    >>> bool((labels[document == 9] == labels[document == 9][0]).all())           # a document moves as one
    True

Windows of one document are not independent: they share topic, author and style. A null that shuffles single windows
takes every topic for a discovery. So labels move between *blocks*: documents, or whatever is exchangeable when the
labels mean nothing. How many blocks a group has bounds what can be claimed: with D blocks of which D_k are the
group's there are C(D, D_k) labellings, and no p-value is below 1 / C(D, D_k) (`smallest_p`).

| file | what | source |
|---|---|---|
| `permutations.py` | labels permuted between blocks; how many there are | Phipson, Smyth 2010; Winkler 2015 |
| `agreement.py` | do two partitions agree, beyond chance? | Vinh, Epps, Bailey 2010 |
| `discoveries.py` | units that stand out from permuted labels, all together | Meinshausen 2006; Hemerik et al. 2019 |

The rule: with confidence 1 - `level`, at most a share `rate` of what is reported is false, however strongly the units
are correlated; where the labels mean nothing, something is reported in at most a share `level` of the cases.

To use it for a new statistic: (1) compute it for every column of `permuted_labels` with the block of every item;
(2) give its largest values per labelling to `envelope`, (3) its values under the true labels to `discoveries`.

What it does not do: parallel texts, where one block holds every group (labels would have to move inside a block).
"""

from ..docs import list_names as _list_names
from .discoveries import Envelope as Envelope
from .discoveries import check_rates as check_rates
from .discoveries import discoveries as discoveries
from .discoveries import envelope as envelope
from .discoveries import keep_largest as keep_largest
from .discoveries import ranks_needed as ranks_needed
from .permutations import counted_labellings as counted_labellings
from .permutations import labels_of_blocks as labels_of_blocks
from .permutations import merged_blocks as merged_blocks
from .permutations import permuted_labels as permuted_labels
from .permutations import smallest_p as smallest_p

_list_names(__name__)
