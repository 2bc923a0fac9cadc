# SPDX-License-Identifier: Apache-2.0
"""Mutated files against every loader: what they are made of, what is done to them, and what came out.

| file | what |
|---|---|
| `seeds.py` | kinds of files: whole examples, and how each is loaded |
| `mutations.py`, `values.py`, `tensors.py` | what is done to a file: bytes and names; JSON and YAML values; tensors |
| `judge.py` | one mutant: made, loaded, and what that counts as |
| `pool.py` | processes with a limit of memory and of time, killed and replaced |

`scripts/fuzz_loaders.py` is the command.
"""
