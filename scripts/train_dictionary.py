# SPDX-License-Identifier: Apache-2.0
"""Train dictionaries: `jaxneuro train-dictionary` as a script.

python scripts/train_dictionary.py --out DIR live --site blocks.3.resid_post topk --n-latents 4096 --k 32
"""

import sys

from jaxneuro.cli import TRAIN, main

if __name__ == "__main__":
    sys.exit(main([TRAIN, *sys.argv[1:]]))
