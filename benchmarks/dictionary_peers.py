# SPDX-License-Identifier: Apache-2.0
"""One training step of a peer's own TopK autoencoder, timed on request. Runs under a Python that has the peer.

    python benchmarks/dictionary_peers.py LIBRARY D N_LATENTS K TOKENS BATCHES THREADS

Prints the library and its version, then for every line "STEPS" on standard input the milliseconds of one step (mean of
so many). The step is what the peer's trainer does between two batches: forward, loss, backward, its own constraints,
counters of firing, Adam.
"""

import importlib.metadata
import sys
import time
from collections.abc import Callable

import torch

RATE = 2e-4


def sparsify(d: int, n: int, k: int) -> Callable:
    """EleutherAI's SparseCoder and its Trainer's step with Adam."""
    from sparsify import SparseCoder, SparseCoderConfig

    coder = SparseCoder(d, SparseCoderConfig(num_latents=n, k=k), device="cpu")
    optimiser = torch.optim.Adam(coder.parameters(), lr=RATE)
    since_fired = torch.zeros(n, dtype=torch.long)

    def step(x: torch.Tensor) -> float:
        coder.set_decoder_norm_to_unit_norm()
        out = coder(x, dead_mask=None)
        out.fvu.backward()
        fired = torch.zeros(n, dtype=torch.bool)
        fired[out.latent_indices.flatten()] = True
        since_fired.add_(len(x)).masked_fill_(fired, 0)
        coder.remove_gradient_parallel_to_decoder_directions()
        optimiser.step()
        optimiser.zero_grad()
        return float(out.fvu.detach())

    return step


def sae_lens(d: int, n: int, k: int, *, sparse: bool) -> Callable:
    """SAELens' TopKTrainingSAE and its SAETrainer's step.

    sparse: latents as a COO tensor, its faster way; its backward pass then has no decoder norms in the selection.
    """
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.saes.sae import TrainStepInput

    config = TopKTrainingSAEConfig(
        d_in=d, d_sae=n, k=k, use_sparse_activations=sparse, rescale_acts_by_decoder_norm=not sparse
    )
    sae = TopKTrainingSAE(config)
    optimiser = torch.optim.Adam(sae.parameters(), lr=RATE, betas=(0.9, 0.999))
    since_fired, counts, steps = torch.zeros(n), torch.zeros(n), [0]

    def step(x: torch.Tensor) -> float:
        steps[0] += 1
        out = sae.training_forward_pass(
            step_input=TrainStepInput(
                sae_in=x,
                dead_neuron_mask=since_fired > 1000,
                coefficients={},
                n_training_steps=steps[0],
                is_logging_step=False,
            )
        )
        with torch.no_grad():
            firing = out.feature_acts.bool().float()
            fired = firing.sum(-2).bool()
            fired = fired.to_dense() if fired.is_sparse else fired
            since_fired.add_(1)
            since_fired[fired] = 0
            counts.add_(firing.sum(0))
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        return float(out.loss.detach())

    return step


PEERS = {
    "sparsify": ("eai-sparsify", sparsify),
    "sae_lens": ("sae-lens", lambda d, n, k: sae_lens(d, n, k, sparse=False)),
    "sae_lens, sparse latents": ("sae-lens", lambda d, n, k: sae_lens(d, n, k, sparse=True)),
}


def main() -> None:
    """See the module."""
    name, (d, n, k, tokens, count, threads) = sys.argv[1], map(int, sys.argv[2:])
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print while they are imported
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    package, make = PEERS[name]
    step = make(d, n, k)
    batches = [torch.randn(tokens, d) for _ in range(count)]
    for x in batches:
        step(x)
    print(f"{package} {importlib.metadata.version(package)}, torch {torch.__version__}", file=answers, flush=True)
    for line in sys.stdin:
        steps = int(line)
        started = time.perf_counter()
        for i in range(steps):
            step(batches[i % count])
        print((time.perf_counter() - started) * 1e3 / steps, file=answers, flush=True)


if __name__ == "__main__":
    main()
