# SPDX-License-Identifier: Apache-2.0
"""Dictionaries that other libraries' own trainers make of stored activations. Runs under a Python that has them.

    python benchmarks/dictionary_quality_peers.py FOLDER THREADS

FOLDER holds train.npy, choose.npy and judge.npy, [tokens, d]. Prints the versions; then for every line of JSON on
standard input, {"library", "method", "value", "rate", "seed", "n_latents", "prefixes", "order"}, one of {"choose":
{"fvu", "l0", "dead"}, "judge": ...}: what the dictionary, as it is saved for inference, does on tokens that it was not
trained on. `order` names a file of rows of train.npy, [steps, batch].
"""

import importlib.metadata
import json
import sys
import tempfile
import types
from pathlib import Path

import numpy as np
import torch

WARMUP, DECAY = 20, 5
"""A twentieth of the steps, and a fifth."""


def judged(encode, decode, x: torch.Tensor) -> dict:
    """FVU, L0 and the share of latents that were never on."""
    z = encode(x)
    error, on = x - decode(z), z > 0
    return {
        "fvu": float(error.square().sum() / (x - x.mean(0)).square().sum()),
        "l0": float(on.sum() / len(x)),
        "dead": float((~on.any(0)).float().mean()),
    }


def sae_lens(asked: dict, rows: np.ndarray, train: torch.Tensor, held: dict) -> dict:
    """SAELens' SAETrainer, its defaults but for the length of the run; read back as it saves for inference."""
    from sae_lens import SAE, LoggingConfig
    from sae_lens import saes as s
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    value, (steps, batch) = asked["value"], rows.shape
    shape = {"d_in": train.shape[1], "d_sae": asked["n_latents"], "normalize_activations": "expected_average_only_in"}
    nested = {"matryoshka_widths": asked["prefixes"]}
    target = {"jumprelu_sparsity_loss_mode": "quadratic", "target_l0": value}
    names, told = {
        "topk": ("TopK", {"k": int(value)}),
        "batch_topk": ("BatchTopK", {"k": value}),
        "matryoshka": ("MatryoshkaBatchTopK", {"k": value} | nested),
        "relu": ("Standard", {"l1_coefficient": value}),
        "gated": ("Gated", {"l1_coefficient": value}),
        "jumprelu": ("JumpReLU", target),
    }[asked["method"]]
    sae = getattr(s, f"{names}TrainingSAE")(getattr(s, f"{names}TrainingSAEConfig")(**shape, **told))
    config = SAETrainerConfig(
        total_training_samples=steps * batch,
        train_batch_size_samples=batch,
        lr=asked["rate"],
        lr_end=0.0,
        lr_scheduler_name="constant",
        lr_warm_up_steps=steps // WARMUP,
        lr_decay_steps=steps // DECAY,
        n_restart_cycles=1,
        adam_beta1=0.9,
        adam_beta2=0.999,
        dead_feature_window=1000,
        feature_sampling_window=2000,
        n_batches_for_norm_estimate=1,
        n_checkpoints=0,
        checkpoint_path=None,
        save_final_checkpoint=False,
        device="cpu",
        autocast=False,
        logger=LoggingConfig(log_to_wandb=False),
    )
    stream = (train[i] for i in (rows[0], *rows))  # the first is read for the norm
    SAETrainer(config, sae, stream).fit()
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        sae.fold_W_dec_norm()  # thresholds are of pre-activations times the norm
        sae.save_inference_model(folder)
        found = SAE.load_from_disk(folder)
        return {name: judged(found.encode, found.decode, x) for name, x in held.items()}


def dictionary_learning(asked: dict, rows: np.ndarray, train: torch.Tensor, held: dict) -> dict:
    """dictionary_learning's JumpReluTrainer on inputs of mean squared norm 1, as its trainSAE makes them."""
    sys.modules["nnsight"] = nnsight = types.ModuleType("nnsight")
    nnsight.LanguageModel = None  # type: ignore[attr-defined]  # of its buffers, which are not used
    from dictionary_learning.trainers.jumprelu import JumpReluTrainer

    del sys.modules["nnsight"]
    steps = len(rows)
    scale = train.square().sum(1).mean().rsqrt()
    trainer = JumpReluTrainer(
        steps=steps,
        activation_dim=train.shape[1],
        dict_size=asked["n_latents"],
        layer=0,
        lm_name="",
        lr=asked["rate"],
        target_l0=asked["value"],
        warmup_steps=steps // WARMUP,
        sparsity_warmup_steps=steps // WARMUP,
        decay_start=steps - steps // DECAY,
    )
    for step, i in enumerate(rows):
        trainer.update(step, train[i] * scale)
    with torch.no_grad():
        ae = trainer.ae
        return {name: judged(ae.encode, ae.decode, x * scale) for name, x in held.items()}


PEERS = {"sae_lens": ("sae-lens", sae_lens), "dictionary_learning": ("dictionary-learning", dictionary_learning)}


def main() -> None:
    """See the module."""
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print
    folder = Path(sys.argv[1])
    torch.set_num_threads(int(sys.argv[2]))
    train, choose, judge = (torch.from_numpy(np.load(folder / f"{n}.npy")) for n in ("train", "choose", "judge"))
    there = {name: _version(package) for name, (package, _) in PEERS.items()} | {"torch": torch.__version__}
    print(json.dumps(there), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        torch.manual_seed(asked["seed"])
        rows = np.load(folder / asked["order"])
        found = PEERS[asked["library"]][1](asked, rows, train, {"choose": choose, "judge": judge})
        print(json.dumps(found), file=answers, flush=True)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
