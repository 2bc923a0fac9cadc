# SPDX-License-Identifier: Apache-2.0
"""Make the golden data of tests/dictionaries: small dictionaries as other libraries write them, and what they compute.

Needs torch and the libraries, in environments of their own (nothing else of this repository is imported):

    pip install torch sae-lens 'transformer-lens<4' eai-sparsify dictionary-learning circuit-tracer
    python scripts/make_dictionary_fixtures.py                write all cases but SAELens v5's
    python scripts/make_dictionary_fixtures.py --read-back    read fixtures/written, which jaxneuro wrote, with the
                                                              libraries, and keep what they compute
    pip install 'sae-lens==5.*'
    python scripts/make_dictionary_fixtures.py --saelens5     write SAELens v5's

A case is a folder (or a file in one) as its library writes it, with expected.npz beside: x, z = encode(x), x_hat.
about.json says of each case who made the files and who computed the numbers; where no library can be installed the
numbers are the published formula in float64, and it says so. Parameters are random and far from their initial values:
biases not zero, decoder rows of different norms, widths that differ where a library allows it.
"""

import argparse
import importlib.metadata
import json
import math
import shutil
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch

FIXTURES = Path(__file__).parents[1] / "tests" / "dictionaries" / "fixtures"
SEED = 20251121
TOKENS, D, M, D_OUT, K = 5, 6, 12, 4, 3
_ABOUT: dict[str, dict[str, Any]] = {}


def _randomise(module: torch.nn.Module) -> None:
    """Every parameter random; thresholds above 0, so that latents are on and off."""
    generator = torch.Generator().manual_seed(SEED)
    for name, p in [*module.named_parameters(), *module.named_buffers()]:
        if not p.is_floating_point():
            continue
        noise = torch.randn(p.shape, generator=generator, dtype=torch.float32)
        if "log_threshold" not in name and "threshold" in name:
            noise = noise.abs() * 0.5 + 0.1
        elif p.ndim < 2:
            noise = noise * 0.3
        with torch.no_grad():
            p.copy_(noise)


def _near_unit(w_dec: torch.nn.Parameter) -> None:
    """Rows of norms 0.8 to 1.1, as rounds of matching pursuit lead away from x where rows are longer than sqrt(2)."""
    with torch.no_grad():
        w_dec *= torch.linspace(0.8, 1.1, len(w_dec))[:, None] / w_dec.norm(dim=1, keepdim=True)


def _tokens(*shape: int) -> torch.Tensor:
    return torch.randn(shape or (TOKENS, D), generator=torch.Generator().manual_seed(SEED + 1)) * 1.5 + 0.2


def _keep(case: str, x: Any, z: Any, x_hat: Any, *, files: str, numbers: str, **more: Any) -> None:
    """expected.npz, and its line in about.json. files, numbers: "library version" or what else made them."""
    values = {n: np.asarray(a.detach() if hasattr(a, "detach") else a, np.float32) for n, a in
              {"x": x, "z": z, "x_hat": x_hat, **more}.items()}  # fmt: skip
    assert 0 < (values["z"] > 0).sum() < values["z"].size, f"{case}: all latents are on, or none"
    folder = FIXTURES / case
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / "expected.npz", **values, allow_pickle=False)
    _ABOUT[case] = {"files": files, "numbers": numbers, "seed": SEED}


def _version(package: str) -> str:
    return f"{package} {importlib.metadata.version(package)}"


# SAELens v6 -----------------------------------------------------------------------------------------------------------

_SITE = {"model_name": "tiny", "hook_name": "blocks.1.hook_resid_post", "context_size": 32, "prepend_bos": True}
# case: (architecture, what differs in the config)
SAELENS: dict[str, tuple[str, dict[str, Any]]] = {
    "standard": ("standard", {}),
    "standard_uncentred": ("standard", {"apply_b_dec_to_input": False}),
    "standard_layer_norm": ("standard", {"normalize_activations": "layer_norm"}),
    "standard_constant_norm": ("standard", {"normalize_activations": "constant_norm_rescale"}),
    "standard_bfloat16": ("standard", {"dtype": "bfloat16"}),
    "standard_hook_z": ("standard", {"reshape_activations": "hook_z"}),
    "topk": ("topk", {"k": K}),
    "topk_rescaled": ("topk", {"k": K, "rescale_acts_by_decoder_norm": True}),
    "abstopk": ("abstopk", {"k": K}),
    "abstopk_rescaled": ("abstopk", {"k": K, "rescale_acts_by_decoder_norm": True}),
    "matching_pursuit": ("matching_pursuit", {}),
    "matching_pursuit_threshold": ("matching_pursuit", {"residual_threshold": 1.0, "stop_on_duplicate_support": False}),
    "matching_pursuit_repeat": ("matching_pursuit", {"residual_threshold": 0.0, "max_iterations": 9}),
    "matching_pursuit_rounds": (
        "matching_pursuit",
        {"residual_threshold": 0.0, "max_iterations": 9, "stop_on_duplicate_support": False},
    ),
    "matching_pursuit_uncentred": ("matching_pursuit", {"max_iterations": K, "apply_b_dec_to_input": False}),
    "matching_pursuit_layer_norm": ("matching_pursuit", {"max_iterations": K, "normalize_activations": "layer_norm"}),
    "matching_pursuit_hook_z": ("matching_pursuit", {"max_iterations": K, "reshape_activations": "hook_z"}),
    "jumprelu": ("jumprelu", {}),
    "gated": ("gated", {}),
    "transcoder": ("transcoder", {"d_out": D_OUT}),
    "skip_transcoder": ("skip_transcoder", {"d_out": D_OUT}),
    "jumprelu_transcoder": ("jumprelu_transcoder", {"d_out": D_OUT}),
    "jumprelu_skip_transcoder": ("jumprelu_skip_transcoder", {"d_out": D_OUT}),
}
# Training checkpoints; what is computed is what the library's inference save of them computes.
SAELENS_TRAINING: dict[str, tuple[str, dict[str, Any]]] = {
    "training_standard": ("standard", {}),
    "training_topk": ("topk", {"k": K}),
    "training_abstopk": ("abstopk", {"k": K}),
    "training_matching_pursuit": ("matching_pursuit", {"max_iterations": K}),
    "training_matching_pursuit_factor": (
        "matching_pursuit",
        {"residual_threshold": 2.0, "normalize_activations": "expected_average_only_in"},
    ),
    "training_jumprelu": ("jumprelu", {}),
    "training_gated": ("gated", {}),
    "training_batchtopk": ("batchtopk", {"k": float(K)}),
    "training_batchtopk_unscaled": ("batchtopk", {"k": 2.5, "rescale_acts_by_decoder_norm": False}),
    "training_matryoshka_batchtopk": ("matryoshka_batchtopk", {"k": float(K), "matryoshka_widths": [4, M]}),
    "training_standard_factor": ("standard", {"normalize_activations": "expected_average_only_in"}),
    "training_batchtopk_factor": (
        "batchtopk",
        {"k": float(K), "normalize_activations": "expected_average_only_in"},
    ),
}
FACTOR = 1.7


def saelens() -> None:
    from sae_lens.registry import get_sae_class, get_sae_training_class
    from sae_lens.saes.sae import SAE, SAEMetadata

    for case, (architecture, changes) in SAELENS.items():
        cls, config = get_sae_class(architecture)
        hook = {"hook_name": "blocks.1.attn.hook_z"} if case.endswith("hook_z") else {}
        hook |= {"hook_name_out": "blocks.1.hook_mlp_out"} if "d_out" in changes else {}
        subtracts = {"apply_b_dec_to_input": False} if "d_out" in changes else {}
        sae = cls(config(d_in=D, d_sae=M, metadata=SAEMetadata(**{**_SITE, **hook}), **{**subtracts, **changes}))
        _randomise(sae)
        if architecture == "matching_pursuit":
            _near_unit(sae.W_dec)
        sae.save_model(FIXTURES / "saelens" / case)
        sae = sae.to(torch.float32)
        x = _tokens(TOKENS, 2, D // 2) if case.endswith("hook_z") else _tokens()
        z = sae.encode(x)
        _keep(f"saelens/{case}", x.reshape(TOKENS, D), z, sae(x).reshape(TOKENS, -1), files=_version("sae-lens"),
              numbers=_version("sae-lens"))  # fmt: skip
    for case, (architecture, changes) in SAELENS_TRAINING.items():
        cls, config = get_sae_training_class(architecture)
        sae = cls(config(d_in=D, d_sae=M, metadata=SAEMetadata(**_SITE), **changes))
        _randomise(sae)
        if architecture == "matching_pursuit":
            _near_unit(sae.W_dec)
        folder = FIXTURES / "saelens" / case
        sae.save_model(folder)
        if case.endswith("_factor"):
            (folder / "activation_scaler.json").write_text(json.dumps({"scaling_factor": FACTOR}))
            sae.fold_activation_norm_scaling_factor(FACTOR)
        sae.save_inference_model(folder / "inference")
        inference = SAE.load_from_disk(folder / "inference")
        shutil.rmtree(folder / "inference")
        x = _tokens()
        _keep(f"saelens/{case}", x, inference.encode(x), inference(x), files=_version("sae-lens"),
              numbers=f"{_version('sae-lens')}, its inference save")  # fmt: skip
    _log_threshold(get_sae_training_class)


def _log_threshold(get_sae_training_class: Any) -> None:
    """A training file of SAELens up to 6.47: log_threshold; the tensor is renamed here, the library reads it."""
    from safetensors.torch import load_file, save_file

    cls, config = get_sae_training_class("jumprelu")
    folder = FIXTURES / "saelens" / "training_jumprelu_log"
    shutil.copytree(FIXTURES / "saelens" / "training_jumprelu", folder, dirs_exist_ok=True)
    tensors = load_file(folder / "sae_weights.safetensors")
    tensors["log_threshold"] = tensors.pop("threshold").log()
    save_file(tensors, folder / "sae_weights.safetensors")
    sae = cls(config(d_in=D, d_sae=M))
    sae.load_weights_from_checkpoint(folder)
    x = _tokens()
    _keep("saelens/training_jumprelu_log", x, sae.encode(x), sae(x),
          files=f"{_version('sae-lens')}, threshold stored as its logarithm", numbers=_version("sae-lens"))  # fmt: skip


# SAELens v5 -----------------------------------------------------------------------------------------------------------

SAELENS5: dict[str, dict[str, Any]] = {
    "standard": {},
    "standard_layer_norm": {"normalize_activations": "layer_norm"},
    "standard_finetuned": {"finetuning_scaling_factor": True},
    "standard_hook_z": {"hook_name": "blocks.1.attn.hook_z"},
    "topk": {"architecture": "topk", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}},
    "jumprelu": {"architecture": "jumprelu"},
    "gated": {"architecture": "gated"},
}


def saelens5() -> None:
    from sae_lens.sae import SAE, SAEConfig

    for case, changes in SAELENS5.items():
        config = {
            "architecture": "standard",
            "d_in": D,
            "d_sae": M,
            "activation_fn_str": "relu",
            "dtype": "float32",
            "apply_b_dec_to_input": True,
            "finetuning_scaling_factor": False,
            "context_size": 32,
            "device": "cpu",
            "model_name": "tiny",
            "hook_name": "blocks.1.hook_resid_post",
            "hook_layer": 1,
            "hook_head_index": None,
            "prepend_bos": True,
            "dataset_path": "none",
            "dataset_trust_remote_code": False,
            "normalize_activations": "none",
            "sae_lens_training_version": "5.11.0",
            **changes,
        }
        sae = SAE(SAEConfig(**config))
        _randomise(sae)
        sae.save_model(FIXTURES / "saelens5" / case)
        x = _tokens(TOKENS, 2, D // 2) if "hook_z" in case else _tokens()
        _keep(f"saelens5/{case}", x.reshape(TOKENS, D), sae.encode(x), sae(x).reshape(TOKENS, D),
              files=_version("sae-lens"), numbers=_version("sae-lens"))  # fmt: skip


# sparsify -------------------------------------------------------------------------------------------------------------

SPARSIFY: dict[str, dict[str, Any]] = {
    "sae": {"num_latents": M},
    "sae_expansion": {"num_latents": 0, "expansion_factor": 2},
    "sae_groupmax": {"num_latents": M, "activation": "groupmax"},
    "sae_skip": {"num_latents": M, "skip_connection": True},
    "transcoder": {"num_latents": M, "transcode": True},
    "skip_transcoder": {"num_latents": M, "transcode": True, "skip_connection": True},
}


def sparsify() -> None:
    from sparsify.config import SparseCoderConfig
    from sparsify.sparse_coder import SparseCoder

    for case, changes in SPARSIFY.items():
        coder = SparseCoder(D, SparseCoderConfig(k=K, **changes))
        _randomise(coder)
        coder.save_to_disk(FIXTURES / "sparsify" / case)
        _keep(
            f"sparsify/{case}", *_of_sparsify(coder), files=_version("eai-sparsify"), numbers=_version("eai-sparsify")
        )


def _of_sparsify(coder: Any) -> tuple[Any, Any, Any]:
    x = _tokens()
    code = coder.encode(x)
    z = torch.zeros(TOKENS, coder.num_latents).scatter(-1, code.top_indices, code.top_acts)
    return x, z, coder(x).sae_out


# dictionary_learning --------------------------------------------------------------------------------------------------


def dictionary_learning() -> None:
    from dictionary_learning import dictionary as plain
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
    from dictionary_learning.trainers.top_k import AutoEncoderTopK

    made = [
        plain.AutoEncoder(D, M),
        plain.AutoEncoderNew(D, M),
        plain.GatedAutoEncoder(D, M),
        AutoEncoderTopK(D, M, K),
        BatchTopKSAE(D, M, K),
        MatryoshkaBatchTopKSAE(D, M, K, [4, 8]),
        plain.JumpReluAutoEncoder(D, M),
    ]
    for sae in made:
        _randomise(sae)
        name = type(sae).__name__
        folder = FIXTURES / "dictionary_learning" / name
        folder.mkdir(parents=True, exist_ok=True)
        torch.save({k: v.cpu() for k, v in sae.state_dict().items()}, folder / "ae.pt")  # as training.py does
        trainer = {"dict_class": name, "activation_dim": D, "dict_size": M, "layer": 1, "lm_name": "tiny"}
        trainer |= {"k": K} if hasattr(sae, "k") else {}
        (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 32}}, indent=4))
        x = _tokens()
        _keep(f"dictionary_learning/{name}", x, sae.encode(x), sae(x),
              files=f"{_version('dictionary-learning')}, config.json as its training.py lays it out",
              numbers=_version("dictionary-learning"))  # fmt: skip


# circuit-tracer and Gemma Scope ---------------------------------------------------------------------------------------

_HOOKS = {"model_name": "tiny", "feature_input_hook": "mlp.hook_in", "feature_output_hook": "mlp.hook_out"}
LAYERS = 3


def circuit_tracer() -> None:
    from circuit_tracer.transcoder.activation_functions import JumpReLU
    from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder
    from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder, TranscoderSet

    def one(layer: int, jump: bool, skip: bool) -> Any:
        act = JumpReLU(torch.zeros(M)) if jump else torch.nn.functional.relu
        coder = SingleLayerTranscoder(D, M, act, layer, skip_connection=skip, dtype=torch.float32)
        _randomise(coder)
        with torch.no_grad():
            coder.W_enc *= 1 + 0.1 * layer
        return coder

    for case, jump, skip in (("set", False, False), ("set_jumprelu", True, False), ("set_skip", True, True)):
        coders = TranscoderSet({i: one(i, jump, skip) for i in range(LAYERS)}, "mlp.hook_in", "mlp.hook_out")
        coders.to_safetensors(str(FIXTURES / "circuit_tracer" / case))
        _keep(f"circuit_tracer/{case}", *_of_set(coders), **_CT())
        _yaml(case, "transcoder_set")
    for case, act in (("clt", "relu"), ("clt_jumprelu", "jump_relu")):
        clt = CrossLayerTranscoder(LAYERS, M, D, activation_function=act, lazy_decoder=False, dtype=torch.float32)
        _randomise(clt)
        clt.to_safetensors(str(FIXTURES / "circuit_tracer" / case))
        _keep(f"circuit_tracer/{case}", *_of_clt(clt), **_CT())
        _yaml(case, "cross_layer_transcoder")


def _CT() -> dict[str, str]:
    return {"files": f"{_version('circuit-tracer')}, config.yaml as in its published sets",
            "numbers": _version("circuit-tracer")}  # fmt: skip


def _of_set(coders: Any) -> tuple[Any, Any, Any]:
    x = _tokens(LAYERS, TOKENS, D)
    z = coders.encode(x)
    return x, z, coders.decode(z, x)


def _of_clt(clt: Any) -> tuple[Any, Any, Any]:
    x = _tokens(LAYERS, TOKENS, D)
    return x, clt.encode(x), clt(x)


def _yaml(case: str, kind: str) -> None:
    lines = [f"{key}: {value}" for key, value in {**_HOOKS, "model_kind": kind, "scan": "none"}.items()]
    (FIXTURES / "circuit_tracer" / case / "config.yaml").write_text("\n".join(lines) + "\n")


def gemma_scope() -> None:
    """Files as published; read, and the numbers computed, by circuit-tracer's loaders of them."""
    from circuit_tracer.transcoder import single_layer_transcoder as slt
    from safetensors.torch import save_file

    rng = np.random.default_rng(SEED)
    p = {"W_enc": rng.normal(size=(D, M)), "W_dec": rng.normal(size=(M, D)), "b_enc": rng.normal(size=M) * 0.3,
         "b_dec": rng.normal(size=D) * 0.3, "threshold": np.abs(rng.normal(size=M)) * 0.5 + 0.1}  # fmt: skip
    p = {name: a.astype(np.float32) for name, a in p.items()}
    x, numbers = _tokens(), f"{_version('circuit-tracer')}, its Gemma Scope loader"
    folder = FIXTURES / "gemma_scope" / "v1"
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "params.npz", **p, allow_pickle=False)
    coder = slt.load_gemma_scope_transcoder(str(folder / "params.npz"), 0)
    _keep("gemma_scope/v1", x, coder.encode(x), coder(x), files="names as published", numbers=numbers)
    for case, skip in (("v2", False), ("v2_skip", True)):
        folder = FIXTURES / "gemma_scope" / case
        folder.mkdir(parents=True, exist_ok=True)
        stored = {n.lower() if n.startswith("W") else n: torch.tensor(a) for n, a in p.items()}
        if skip:
            stored["affine_skip_connection"] = torch.tensor(rng.normal(size=(D, D)).astype(np.float32))
        save_file(stored, folder / "params.safetensors")
        coder = slt.load_gemma_scope_2_transcoder(str(folder / "params.safetensors"), 0)
        _keep(f"gemma_scope/{case}", x, coder.encode(x), coder(x), files="names as published", numbers=numbers)


# Formats whose libraries cannot be installed: the published formula in float64 ----------------------------------------


def _formula(case: str, x: Any, z: np.ndarray, x_hat: np.ndarray, source: str) -> None:
    _keep(case, x, z, x_hat, files="names as published", numbers=f"the formula of {source} in float64, not the library")


def _parameters() -> tuple[Any, ...]:
    """W_enc [d, m], W_dec [m, d], b_enc, b_dec as float32 values in float64; a rng."""
    rng = np.random.default_rng(SEED)
    shapes = ((D, M), (M, D), (M,), (D,))
    return *(
        (rng.normal(size=s) * (1 if len(s) == 2 else 0.3)).astype(np.float32).astype(np.float64) for s in shapes
    ), rng


def _top(pre: np.ndarray, by: np.ndarray | None = None) -> np.ndarray:
    order = np.argsort(-(pre if by is None else by), axis=-1)[..., :K]
    z = np.zeros_like(pre)
    np.put_along_axis(z, order, np.maximum(np.take_along_axis(pre, order, -1), 0), -1)
    return z


def openai() -> None:
    w_enc, w_dec, b_enc, b_dec, _ = _parameters()
    x = _tokens().numpy().astype(np.float64)
    stored = {"pre_bias": b_dec, "encoder.weight": w_enc.T, "latent_bias": b_enc, "decoder.weight": w_dec.T}
    stored |= {"latents_activation_frequency": np.zeros(M), "latents_mean_square": np.zeros(M)}
    stored = OrderedDict((n, torch.tensor(a, dtype=torch.float32)) for n, a in stored.items())
    stored["stats_last_nonzero"] = torch.zeros(M, dtype=torch.long)
    source = "openai/sparse_autoencoder's model.py"
    for case in ("topk", "relu"):
        (folder := FIXTURES / "openai" / case).mkdir(parents=True, exist_ok=True)
        mean, std = x.mean(-1, keepdims=True), x.std(-1, ddof=1, keepdims=True)
        normal = (x - mean) / (std + 1e-5) if case == "topk" else x
        pre = (normal - b_dec) @ w_enc + b_enc
        z = _top(pre) if case == "topk" else np.maximum(pre, 0)
        y = z @ w_dec + b_dec
        _formula(f"openai/{case}", x, z, y * std + mean if case == "topk" else y, source)
        act = {"activation": "TopK", "activation_state_dict": {"k": K, "postact_fn": "ReLU"}}
        torch.save({**stored, **(act if case == "topk" else {"activation": "ReLU"})}, folder / "7.pt")


def llama_scope() -> None:
    from safetensors.torch import save_file

    w_enc, w_dec, b_enc, b_dec, rng = _parameters()
    x = _tokens().numpy().astype(np.float64)
    log = rng.normal(size=M).astype(np.float32).astype(np.float64) * 0.5
    norms = {"in": 3.5, "out": 2.8}
    s_in, s_out = (math.sqrt(D) / norms[end] for end in ("in", "out"))
    names = {"encoder.weight": w_enc.T, "encoder.bias": b_enc, "decoder.weight": w_dec.T, "decoder.bias": b_dec}
    stored = {n: torch.tensor(np.ascontiguousarray(a), dtype=torch.float32) for n, a in names.items()}
    base = {"d_model": D, "d_sae": M, "act_fn": "jumprelu", "jump_relu_threshold": 0.4,
            "norm_activation": "dataset-wise", "dataset_average_activation_norm": norms,
            "sparsity_include_decoder_norm": True, "use_decoder_bias": True,
            "apply_decoder_bias_to_pre_encoder": False, "top_k": K, "use_glu_encoder": False,
            "hook_point_in": "blocks.1.hook_resid_post", "hook_point_out": "blocks.1.hook_resid_post"}  # fmt: skip
    source = "Language-Model-SAEs' sae.py of November 2024"
    for case, changes in (
        ("jumprelu", {}),
        ("jumprelu_centred", {"sparsity_include_decoder_norm": False, "apply_decoder_bias_to_pre_encoder": True}),
        ("topk", {"act_fn": "topk", "jump_relu_threshold": 0.0}),
    ):
        config = base | changes
        (folder := FIXTURES / "llama_scope" / case / "checkpoints").mkdir(parents=True, exist_ok=True)
        (folder.parent / "hyperparams.json").write_text(json.dumps(config))
        save_file(stored, folder / "final.safetensors")
        # its from_config: scales into the biases and the decoder, then decoder rows to norm 1
        decoder, b = w_dec * s_in / s_out, b_dec / s_out
        norm = np.linalg.norm(decoder, axis=1) if config["sparsity_include_decoder_norm"] else np.ones(M)
        centred = x - b if config["apply_decoder_bias_to_pre_encoder"] else x
        pre = (centred @ w_enc + b_enc / s_in) * norm
        z = _top(pre) if config["act_fn"] == "topk" else np.where(pre > config["jump_relu_threshold"], pre, 0)
        _formula(f"llama_scope/{case}", x, z, z @ (decoder / norm[:, None]) + b, source)
    (folder := FIXTURES / "llama_scope" / "distill").mkdir(parents=True, exist_ok=True)
    config = {k: v for k, v in base.items() if k not in ("d_sae", "dataset_average_activation_norm")}
    (folder / "config.json").write_text(json.dumps(config | {"expansion_factor": M // D}))
    save_file({**stored, "log_jumprelu_threshold": torch.tensor(log, dtype=torch.float32)},
              folder / "sae_weights.safetensors")  # fmt: skip
    x = _tokens(60, D).numpy().astype(np.float64)  # so many that some lie between thresholds of other units
    norm = np.linalg.norm(w_dec, axis=1)
    pre = (x * s_in @ w_enc + b_enc) * norm  # in scaled units, as it was trained
    z = np.where(pre > np.exp(log), pre, 0)
    _formula("llama_scope/distill", x, z / s_out, (z / norm @ w_dec + b_dec) / s_out, f"{source}, thresholds by latent")


def others() -> None:
    from safetensors.torch import save_file

    w_enc, w_dec, b_enc, b_dec, rng = _parameters()
    x = _tokens().numpy().astype(np.float64)
    out = rng.normal(size=(M, D_OUT)).astype(np.float32)
    b_out = rng.normal(size=D_OUT).astype(np.float32)
    s = np.abs(rng.normal(size=M)).astype(np.float32) + np.float32(0.2)
    (folder := FIXTURES / "transcoder_circuits").mkdir(parents=True, exist_ok=True)
    names = {"W_enc": w_enc, "b_enc": b_enc, "W_dec": out, "b_dec": b_dec, "b_dec_out": b_out}
    torch.save({"cfg": {"d_in": D, "d_out": D_OUT, "is_transcoder": True},
                "state_dict": OrderedDict((n, torch.tensor(a, dtype=torch.float32)) for n, a in names.items())},
               folder / "transcoder.pt")  # fmt: skip
    z = np.maximum((x - b_dec) @ w_enc + b_enc, 0)
    _formula("transcoder_circuits", x, z, z @ out.astype(np.float64) + b_out, "transcoder_circuits")
    (folder := FIXTURES / "saex").mkdir(parents=True, exist_ok=True)
    names = {"W_enc": w_enc, "b_enc": b_enc, "W_dec": w_dec, "b_dec": b_dec, "s": s}
    save_file({n: torch.tensor(a, dtype=torch.float32) for n, a in names.items()}, folder / "sae.safetensors")
    z = np.maximum((x - b_dec) @ w_enc, 0)  # use_encoder_bias False, remove_decoder_bias True
    _formula("saex", x, z, (z * s) @ w_dec + b_dec, "saex")


def torch_files() -> None:
    """Both layouts of torch.save, with every dtype, views, a module's state and plain values."""
    base = torch.arange(12, dtype=torch.float32)
    integers = {str(t).removeprefix("torch."): torch.tensor([1, 0, 3], dtype=t) for t in
                (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)}  # fmt: skip
    floats = {str(t).removeprefix("torch."): torch.tensor([1.5, -2.25], dtype=t) for t in
              (torch.float32, torch.float64, torch.float16, torch.bfloat16)}  # fmt: skip
    views = {"view": base.reshape(3, 4).T, "part": base[2:8:3], "same": base, "scalar": torch.tensor(7.0),
             "empty": torch.zeros(0, 3), "parameter": torch.nn.Parameter(torch.ones(2, 2))}  # fmt: skip
    tensors = {**integers, **floats, **views}
    (folder := FIXTURES / "torch").mkdir(parents=True, exist_ok=True)
    plain = {"k": 3, "rate": 0.5, "name": "tiny", "flags": [True, None], "shape": torch.Size([2, 3]), "big": 2**40}
    value = {"tensors": tensors, "plain": plain, "module": torch.nn.Linear(2, 1).state_dict()}
    torch.save(value, folder / "zip.pt")
    torch.save(value, folder / "legacy.pt", _use_new_zipfile_serialization=False)
    wide = {n: t.float() if t.dtype == torch.bfloat16 else t for n, t in tensors.items()}  # NumPy has no bfloat16
    np.savez_compressed(folder / "expected.npz", **{n: t.detach().numpy() for n, t in wide.items()}, allow_pickle=False)
    _ABOUT["torch"] = {"files": f"torch {torch.__version__}", "numbers": f"torch {torch.__version__}", "seed": None}


# What jaxneuro wrote --------------------------------------------------------------------------------------------------


def read_back() -> None:
    """Read fixtures/written/LIBRARY/CASE with the library that it was written for."""
    from circuit_tracer.transcoder.cross_layer_transcoder import load_clt
    from circuit_tracer.transcoder.single_layer_transcoder import load_transcoder_set
    from sae_lens.saes.sae import SAE
    from sparsify.sparse_coder import SparseCoder

    written = FIXTURES / "written"
    for folder in sorted((written / "saelens").iterdir()):
        sae = SAE.load_from_disk(folder).to(torch.float32)
        x = _tokens(TOKENS, 2, D // 2) if sae.cfg.reshape_activations == "hook_z" else _tokens()
        _keep(f"written/saelens/{folder.name}", x.reshape(TOKENS, D), sae.encode(x), sae(x).reshape(TOKENS, -1),
              files="jaxneuro", numbers=_version("sae-lens"))  # fmt: skip
    for folder in sorted((written / "sparsify").iterdir()):
        coder = SparseCoder.load_from_disk(folder)
        _keep(
            f"written/sparsify/{folder.name}", *_of_sparsify(coder), files="jaxneuro", numbers=_version("eai-sparsify")
        )
    for folder in sorted((written / "circuit_tracer").iterdir()):
        if folder.name.startswith("clt"):
            numbers = _of_clt(load_clt(str(folder), dtype=torch.float32))
        else:
            paths = {i: str(folder / f"layer_{i}.safetensors") for i in range(LAYERS)}
            numbers = _of_set(load_transcoder_set(paths, "none", "mlp.hook_in", "mlp.hook_out"))
        _keep(f"written/circuit_tracer/{folder.name}", *numbers, files="jaxneuro", numbers=_version("circuit-tracer"))


def main() -> None:
    """Make the cases of this environment's libraries."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--saelens5", action="store_true", help="write SAELens v5's cases (needs sae-lens 5)")
    parser.add_argument("--read-back", action="store_true", help="read what jaxneuro wrote")
    args = parser.parse_args()
    all_but_5 = (
        saelens,
        sparsify,
        dictionary_learning,
        circuit_tracer,
        gemma_scope,
        openai,
        llama_scope,
        others,
        torch_files,
    )
    torch.manual_seed(SEED)
    for make in (saelens5,) if args.saelens5 else (read_back,) if args.read_back else all_but_5:
        make()
    about = FIXTURES / "about.json"
    known = json.loads(about.read_text())["cases"] if about.exists() else {}
    cases = dict(sorted({**known, **_ABOUT}.items()))
    text = {"made_by": "scripts/make_dictionary_fixtures.py", "torch": torch.__version__, "cases": cases}
    about.write_text(json.dumps(text, indent=1) + "\n")


if __name__ == "__main__":
    main()
