# SPDX-License-Identifier: Apache-2.0
"""jaxneuro opens up pretrained networks: it names every internal value, reads it and rewrites it inside one compiled JAX
program, finds the neurons and features that carry a language, a relation or a task, and proves it by intervening.

Names load on first use, so `import jaxneuro` is light.
"""

__version__ = "0.1.0"
