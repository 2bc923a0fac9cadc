# SPDX-License-Identifier: Apache-2.0
"""Which texts, as which tokens, in which batches? Text files or datasets -> token ids -> fixed-shape batches.

    groups = read_groups("texts/")                       # {"de": documents, "en": documents, ...}
    tokenizer = load_tokenizer("bundled")
    rows = windows(groups, tokenizer, length=128, cache_dir="cache/")
    for batch in batches(rows, batch_size=32, seed=0):   # tokens, mask, counted, group, window
        ...

The first step by itself:

    >>> import pathlib, tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> _ = (folder / "en.txt").write_text("one two three")
    >>> _ = (folder / "de.txt").write_text("eins zwei drei vier")
    >>> groups = read_groups(folder)
    >>> [(name, len(documents), documents[0]) for name, documents in groups.items()]
    [('de', 1, 'eins zwei drei vier'), ('en', 1, 'one two three')]

**Protocol.** Each step takes what the step before returns, and plain Python data does as well: `windows` takes any
mapping of names to sequences of strings, `batches` any `Windows`. A batch is a dict of NumPy arrays of one shape:

| key | shape | what |
|---|---|---|
| `tokens` | int32 [B, T] | ids |
| `mask` | bool [B, T] | real tokens; everything that attends or sums respects it |
| `counted` | bool [B, T] | what statistics use: real, and no special token (begin, end, separator, unknown ...) |
| `group` | int32 [B] | number into `group_names` |
| `window` | int32 [B] | number of the row, the same in every epoch and shard; -1 in filler rows, whose mask is False |

| file | what | with |
|---|---|---|
| `groups.py`, `layouts.py`, `hub.py` | folders, one file, a data set on disk or on the Hub | `datasets` (extra `hub`) |
| `formats`, `spans`, `tables`, `documents` | .txt .csv ..., checked once, then read at random | pyarrow |
| `records.py` | which fields are the text and the group; conversations | |
| `tokenizer.py`, `pieces.py` | ids, specials, tokens as one shows them, for each kind of vocabulary | transformers |
| `rows.py` | texts to padded rows, what stands around a text once: `tokens, mask = tokenizer.batch(texts)` | NumPy |
| `store.py` | tokenize once, into memory or a cache that proves itself | NumPy |
| `subset.py`, `paired.py` | some of the rows, for splits; texts beside their answers, for T5 | NumPy |
| `windows.py`, `packing.py` | packing into rows; blocks that share documents; permuted labels | NumPy |
| `batches.py` | shuffle, shards, epochs, resume | Grain |
| `pictures.py`, `picture_rows.py` | folders and tables of pictures as rows; a patch is a token | Pillow |
| `processor.py`, `processor_config.py` | pictures as a model's folder says | Pillow (extra `images`) |

**To add a file format**: (1) write `scan(path, fields)`, which yields an `Entry` for each document and raises for bad
input with file and place; (2) write a `Part` that reads document i again; (3) add a row to `FORMATS`; (4) add its good
and bad files to `tests/data/test_groups.py`. A packing is a class with `__len__` and `row`, and a row in `PACKINGS`.

**Not here**: cleaning, deduplication, language identification, streaming from the network (a dataset is downloaded
first), chat templates (`read_groups(render=...)` takes one), pictures inside of tables (their paths are read).
"""

from ..docs import list_names as _list_names
from .batches import batches as batches
from .by_row import counted_per_row as counted_per_row
from .documents import Documents as Documents
from .groups import Groups as Groups
from .groups import read_groups as read_groups
from .groups import require_groups as require_groups
from .paired import Paired as Paired
from .picture_rows import PictureRows as PictureRows
from .picture_rows import Places as Places
from .pictures import PictureFields as PictureFields
from .pictures import Pictures as Pictures
from .pictures import read_pictures as read_pictures
from .processor import Processor as Processor
from .processor_config import load_processor as load_processor
from .records import TextFields as TextFields
from .rows import BOS as BOS
from .rows import Bos as Bos
from .rows import TokenBatch as TokenBatch
from .store import TokenStore as TokenStore
from .store import tokenize as tokenize
from .subset import Subset as Subset
from .subset import draw_windows as draw_windows
from .subset import in_turns as in_turns
from .tokenizer import Tokenizer as Tokenizer
from .tokenizer import load_tokenizer as load_tokenizer
from .windows import Windows as Windows
from .windows import shuffled_labels as shuffled_labels
from .windows import windows as windows

_list_names(__name__)
