# SPDX-License-Identifier: Apache-2.0
"""Bytes to arrays and back, strict both ways: nothing is unpickled, guessed, or left half-written.

| file | what | format |
|---|---|---|
| `files.py` | whole-file writes that either happen or do not; JSON within limits | any |
| `fields.py` | the typed reader of every JSON object: kinds, ranges, all problems at once | JSON |
| `npy.py` | names and sizes before numbers, nothing unpickled | .npy, .npz |
| `sources.py` | what a model's name stands for: bundled, MiniLM, a folder, the Hub | Hugging Face folder |
| `torch_file.py`, `pickled.py` | files of torch.save, without torch and without unpickling | zip and legacy .pt |
| `safetensors.py` | read over mmap with full validation, write | safetensors 0.x header |
"""

from ..docs import list_names as _list_names
from .files import atomic_write as atomic_write
from .files import json_text as json_text
from .files import or_null as or_null
from .files import read_json as read_json
from .files import save_npz as save_npz
from .files import write_json as write_json
from .files import write_text as write_text
from .safetensors import read_checkpoint as read_checkpoint
from .safetensors import read_safetensors as read_safetensors
from .safetensors import write_safetensors as write_safetensors
from .torch_file import read_torch as read_torch

_list_names(__name__)
