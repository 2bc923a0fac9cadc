# SPDX-License-Identifier: Apache-2.0
"""Foreign files that are not what they should be: one error that names everything, and nothing filled in."""

import dataclasses
import io
import json
import pathlib
import resource
import shutil
import zipfile

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneuro.cli import main
from jaxneuro.dictionaries import (
    AbsTopK,
    GroupMax,
    JumpReLU,
    Relu,
    SparseCoder,
    TopK,
    formats,
    save_native,
    save_saelens,
)
from jaxneuro.dictionaries.formats import load_dictionary, load_metadata, openai, strict
from jaxneuro.errors import UserError
from jaxneuro.io import read_safetensors, write_safetensors
from jaxneuro.io.torch_file import read_torch

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
# One case of each format whose tensors lie in a safetensors file, with that file and two of its tensors.
SAFETENSORS = {
    "saelens/jumprelu": ("sae_weights.safetensors", "threshold", "W_dec"),
    "saelens/skip_transcoder": ("sae_weights.safetensors", "W_skip", "b_dec"),
    "saelens/gated": ("sae_weights.safetensors", "r_mag", "b_gate"),
    "saelens/matching_pursuit": ("sae_weights.safetensors", "W_dec", "b_dec"),
    "saelens5/standard": ("sae_weights.safetensors", "b_enc", "W_enc"),
    "sparsify/skip_transcoder": ("sae.safetensors", "W_skip", "encoder.bias"),
    "gemma_scope/v2": ("params.safetensors", "threshold", "w_enc"),
    "llama_scope/jumprelu": ("checkpoints/final.safetensors", "decoder.bias", "encoder.weight"),
    "circuit_tracer/set": ("layer_1.safetensors", "b_dec", "W_enc"),
    "circuit_tracer/clt_jumprelu": ("W_enc_2.safetensors", "threshold_2", "b_enc_2"),
}


@pytest.fixture
def copy(tmp_path):
    def make(case):
        return pathlib.Path(shutil.copytree(FIXTURES / case, tmp_path / case, dirs_exist_ok=True))

    return make


def rewrite(path, change):
    tensors = {n: np.array(a) for n, a in read_safetensors(path).items()}
    change(tensors)
    write_safetensors(path, tensors)


def reconfigure(path, **changes):
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


@pytest.mark.parametrize("case", SAFETENSORS)
def test_missing_and_extra_tensors_are_named_together(copy, case):
    folder, (file, name, _) = copy(case), SAFETENSORS[case]
    rewrite(folder / file, lambda t: t.update(surplus=t.pop(name)))
    with pytest.raises(
        UserError, match=rf"tensor {name} is missing; .*unknown tensor surplus|unknown tensor surplus.*"
    ):
        load_dictionary(folder)


@pytest.mark.parametrize("case", SAFETENSORS)
def test_wrong_shapes_broken_numbers_and_integers_are_named_together(copy, case):
    folder, (file, one, two) = copy(case), SAFETENSORS[case]

    def change(t):
        t[one] = np.concatenate([t[one], t[one]])
        t[two].flat[-1] = np.nan

    rewrite(folder / file, change)
    with pytest.raises(UserError) as e:
        load_dictionary(folder)
    assert f"{one} has shape" in str(e.value)
    assert f"{two} holds NaN or infinity" in str(e.value)
    rewrite(folder / file, lambda t: t.update({one: t[one].astype(np.int32)}))
    with pytest.raises(UserError, match=f"{one} is int32"):
        load_dictionary(folder)


@pytest.mark.parametrize(
    "case", ["saelens/jumprelu", "sparsify/sae", "gemma_scope/v1", "dictionary_learning/AutoEncoder"]
)
def test_a_file_that_was_cut_short(copy, case):
    folder = copy(case)
    for path in folder.iterdir():
        if path.suffix in (".safetensors", ".npz", ".pt") and path.name != "expected.npz":
            path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"whole"):
        load_dictionary(folder)


@pytest.mark.parametrize(
    ("case", "file", "changes", "message"),
    [
        ("saelens/transcoder", "cfg.json", {"d_out": ...}, "d_out is missing"),
        ("saelens/transcoder", "cfg.json", {"d_out": 7}, r"W_dec has shape \(12, 4\), cfg.json says \(12, 7\)"),
        ("saelens/transcoder", "cfg.json", {"apply_b_dec_to_input": True}, "b_dec is not of its input"),
        ("saelens/transcoder", "cfg.json", {"normalize_activations": "layer_norm"}, "cannot undo"),
        ("saelens/standard", "cfg.json", {"d_in": 6.0}, "d_in = 6.0 is not a (positive )?whole number"),
        ("saelens/standard", "cfg.json", {"d_in": True}, "d_in = true is not a (positive )?whole number"),
        ("saelens/standard", "cfg.json", {"reshape_activations": "heads"}, "no reshape_activations 'heads'"),
        ("saelens/standard", "cfg.json", {"metadata": []}, "metadata is not an object"),
        ("saelens/standard", "cfg.json", {"architecture": ...}, "no architecture None"),
        ("saelens/topk", "cfg.json", {"k": 2.5}, "k = 2.5 is not a (positive )?whole number"),
        ("saelens5/topk", "cfg.json", {"activation_fn_kwargs": {}}, "k is missing"),
        (
            "saelens5/standard",
            "cfg.json",
            {"activation_fn_str": "tanh-relu"},
            "no architecture 'standard with tanh-relu'",
        ),
        ("saelens5/standard_finetuned", "cfg.json", {"finetuning_scaling_factor": False}, "unknown tensor finetuning"),
        (
            "saelens/training_standard_factor",
            "activation_scaler.json",
            {"scaling_factor": 0},
            "scaling_factor = 0 is not a",
        ),
        ("sparsify/sae", "cfg.json", {"k": ...}, "k is missing"),
        (
            "sparsify/sae",
            "cfg.json",
            {"num_latents": 13},
            r"encoder.weight has shape \(12, 6\), cfg.json says \(13, 6\)",
        ),
        ("sparsify/sae", "cfg.json", {"num_latents": "many"}, "num_latents = 'many' is not a (positive )?whole number"),
        ("sparsify/sae", "cfg.json", {"k": 13}, "k = 13 for 12 latents"),
        ("sparsify/sae", "cfg.json", {"activation": "groupmax", "k": 5}, "groupmax with k = 5 for 12 latents"),
        ("sparsify/sae", "cfg.json", {"activation": "relu"}, "no activation 'relu'"),
        ("sparsify/sae", "cfg.json", {"signed": True}, "signed latents are not read"),
        ("sparsify/sae", "cfg.json", {"skip_connection": True}, "tensor W_skip is missing"),
        ("sparsify/sae_skip", "cfg.json", {"skip_connection": False}, "unknown tensor W_skip"),
        ("sparsify/sae", "cfg.json", {"transcode": "no"}, "transcode = 'no' is not true or false"),
        ("llama_scope/jumprelu", "hyperparams.json", {"act_fn": "gelu"}, "act_fn is 'gelu'"),
        (
            "llama_scope/jumprelu",
            "hyperparams.json",
            {"norm_activation": "token-wise"},
            "no norm_activation 'token-wise'",
        ),
        (
            "llama_scope/jumprelu",
            "hyperparams.json",
            {"dataset_average_activation_norm": {"in": 3}},
            "give average_norm=",
        ),
        ("llama_scope/jumprelu", "hyperparams.json", {"jump_relu_threshold": ...}, "jump_relu_threshold is missing"),
        (
            "llama_scope/jumprelu",
            "hyperparams.json",
            {"sparsity_include_decoder_norm": ...},
            "sparsity_include_decoder_norm is missing",
        ),
        ("llama_scope/jumprelu", "hyperparams.json", {"use_glu_encoder": True}, "use_glu_encoder is not read"),
        ("llama_scope/topk", "hyperparams.json", {"top_k": ...}, "top_k is missing"),
    ],
)
def test_what_a_config_must_not_say(copy, case, file, changes, message):
    folder = copy(case)
    reconfigure(folder / file, **changes)
    with pytest.raises(UserError, match=message):
        load_dictionary(folder)


def test_two_problems_of_a_config_are_one_error(copy):
    folder = copy("sparsify/sae")
    reconfigure(folder / "cfg.json", k=..., activation="relu", signed=True)
    with pytest.raises(UserError, match=r"k is missing; no activation 'relu'.*; signed latents"):
        load_dictionary(folder)


def test_a_factor_that_the_file_lacks_is_asked_for(copy):
    folder = copy("saelens/training_standard_factor")
    want = jax.tree.leaves(load_dictionary(folder))
    (folder / "activation_scaler.json").unlink()
    with pytest.raises(UserError, match=r"Give scaling_factor="):
        load_dictionary(folder)
    for a, b in zip(want, jax.tree.leaves(formats.load_saelens(folder, scaling_factor=1.7)), strict=True):
        assert np.array_equal(a, b)
    with pytest.raises(UserError, match=r"says nothing of a scaling factor"):
        formats.load_saelens(FIXTURES / "saelens" / "standard", scaling_factor=2.0)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("AutoEncoder", {"dict_class": "CrossCoder"}, "no dict_class 'CrossCoder'"),
        ("AutoEncoder", {"dict_class": "AutoEncoderNew"}, "tensor decoder.bias is missing; unknown tensor bias"),
        ("AutoEncoder", {"dict_size": 13}, r"encoder.weight has shape \(12, 6\), config.json says \(13, 6\)"),
        ("AutoEncoderTopK", {"k": 4}, "k is 3, config.json says 4"),
        ("BatchTopKSAE", {"dict_class": "AutoEncoderTopK", "k": 13}, "k = 13 for 12 latents"),
    ],
)
def test_a_trainers_config_that_disagrees(copy, name, changes, message):
    folder = copy(f"dictionary_learning/{name}")
    config = json.loads((folder / "config.json").read_text())
    config["trainer"] |= changes
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        load_dictionary(folder)


def test_weights_that_are_no_state_dict(copy):
    folder = copy("dictionary_learning/AutoEncoder")
    shutil.copy(FIXTURES / "transcoder_circuits" / "transcoder.pt", folder / "ae.pt")
    with pytest.raises(UserError, match=r"no state dict .* but a dict of cfg, state_dict"):
        load_dictionary(folder)


def test_all_layers_are_needed(copy):
    folder = copy("circuit_tracer/set")
    (folder / "layer_1.safetensors").unlink()
    with pytest.raises(UserError, match=r"should hold layers 0 to 1; it holds \[0, 2\]"):
        load_dictionary(folder)
    folder = copy("circuit_tracer/clt")
    (folder / "W_dec_2.safetensors").unlink()
    with pytest.raises(UserError, match=r"should hold layers 0 to 2; it holds \[0, 1\]"):
        load_dictionary(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model_kind: crosscoder", "no model_kind 'crosscoder'"),
        ("a: [1", "is not valid YAML"),
        ("- a", "is not a YAML mapping"),
        ("!!python/object/apply:os.system ['echo pwned']", "is not valid YAML"),
        ("transcoders: [../../../secret.safetensors]", "is not inside its folder"),
        ("transcoders: [5]", "is 5, neither a file nor"),
        ("transcoders: []", "transcoders is not a list of files"),
    ],
)
def test_what_config_yaml_must_not_say(copy, text, message):
    folder = copy("circuit_tracer/set")
    (folder / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        load_dictionary(folder)


def test_thresholds_below_0_would_let_negative_latents_through(copy):
    folder = copy("circuit_tracer/set_jumprelu")
    name = "activation_function.threshold"
    rewrite(folder / "layer_0.safetensors", lambda t: t.update({name: t[name] - 5}))
    with pytest.raises(UserError, match=r"threshold is below 0 in places"):
        load_dictionary(folder)


@pytest.mark.parametrize(
    ("case", "name"),
    [("circuit_tracer/set_skip", "W_skip"), ("circuit_tracer/set_jumprelu", "activation_function.threshold")],
)
def test_what_one_layer_of_a_set_has_every_layer_has(copy, case, name):
    folder = copy(case)
    rewrite(folder / "layer_1.safetensors", lambda t: t.pop(name))
    with pytest.raises(UserError, match=rf"{name} of layers \[0, 2\] alone; either every layer has one or none"):
        load_dictionary(folder)


def test_a_scale_that_the_config_names_is_there(copy):
    folder = copy("saelens5/standard_finetuned")
    rewrite(folder / "sae_weights.safetensors", lambda t: t.pop("finetuning_scaling_factor"))
    with pytest.raises(UserError, match=r"finetuning_scaling_factor is true, but sae_weights.safetensors holds none"):
        load_dictionary(folder)


@pytest.mark.parametrize(("case", "said", "has"), [("v2", True, "no"), ("v2_skip", False, "a")])
def test_a_skip_connection_is_in_the_file_as_the_config_says(copy, case, said, has):
    folder = copy(f"gemma_scope/{case}")
    (folder / "config.json").write_text(json.dumps({"architecture": "jump_relu", "affine_connection": not said}))
    assert (load_dictionary(folder).W_skip is None) is said
    reconfigure(folder / "config.json", affine_connection=said)
    with pytest.raises(UserError, match=f"affine_connection is {str(said).lower()}, but the file has {has} affine"):
        load_dictionary(folder)


@pytest.mark.parametrize("key", ["in", "out"])
@pytest.mark.parametrize("size", [2e7, 1e300])
def test_norms_and_thresholds_have_a_size_that_activations_have(copy, key, size):
    folder = copy("llama_scope/jumprelu")
    path = folder / "hyperparams.json"
    norms = json.loads(path.read_text())["dataset_average_activation_norm"]
    reconfigure(path, dataset_average_activation_norm=norms | {key: size})
    with pytest.raises(UserError, match="mean norms are"):
        load_dictionary(folder)
    reconfigure(path, dataset_average_activation_norm=norms, jump_relu_threshold=size)
    with pytest.raises(UserError, match="jump_relu_threshold = "):
        load_dictionary(folder)


def test_finite_numbers_that_overflow_where_scales_are_folded_are_refused(copy):
    folder = copy("saelens/topk")
    reconfigure(folder / "cfg.json", rescale_acts_by_decoder_norm=True)
    rewrite(folder / "sae_weights.safetensors", lambda t: t["W_enc"].__setitem__((0, 0), 3e38))
    rewrite(folder / "sae_weights.safetensors", lambda t: t.update(W_dec=t["W_dec"] * 100))
    with pytest.raises(UserError, match="overflow float32 when its scales are folded"):
        load_dictionary(folder)


def test_the_first_releases_list_has_decoders_the_other_way_round(copy):
    want = load_dictionary(FIXTURES / "circuit_tracer" / "set")
    folder = copy("circuit_tracer/set")
    lines = ["model_name: tiny", "feature_input_hook: a", "feature_output_hook: b", "transcoders:"]
    for i in (2, 0, 1):
        rewrite(folder / f"layer_{i}.safetensors", lambda t: t.update(W_dec=t["W_dec"].T.copy()))
        lines += [f"  - id: t{i}", f"    layer: {i}", f"    filepath: layer_{i}.safetensors"]
    (folder / "config.yaml").write_text("\n".join(lines))
    got = load_dictionary(folder)
    assert list(got) == [0, 1, 2]
    for i in want:
        assert np.array_equal(got[i].W_dec, want[i].W_dec)


def test_a_set_on_the_hub_that_lists_its_files(copy, monkeypatch, tmp_path):
    """hf://owner/repository/path?revision=r, fetched as a model is: only that file."""
    asked = []

    def snapshot_download(name, revision, allow_patterns):
        asked.append((name, revision, allow_patterns))
        return str(FIXTURES)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    uris = ["gemma_scope/v1/params.npz", "gemma_scope/v2/params.safetensors", "circuit_tracer/set/layer_2.safetensors"]
    (tmp_path / "config.yaml").write_text(
        "model_kind: transcoder_set\ntranscoders:\n"
        + "".join(f"  - hf://someone/scope/{u}?revision=main\n" for u in uris)
    )
    got = load_dictionary(tmp_path)
    assert asked == [("someone/scope", "main", [uri]) for uri in uris]
    assert np.array_equal(got[0].W_enc, load_dictionary(FIXTURES / "gemma_scope" / "v1").W_enc)
    assert np.array_equal(got[2].W_enc, load_dictionary(FIXTURES / "circuit_tracer" / "set")[2].W_enc)


def test_a_name_on_the_hub_fetches_one_subfolder(monkeypatch):
    asked = []

    def snapshot_download(name, revision, allow_patterns):
        asked.append((name, revision, allow_patterns))
        return str(FIXTURES)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert formats.load_saelens("someone/saes", subfolder="saelens/topk", revision="v1").k == 3
    patterns = ["saelens/topk/cfg.json", "saelens/topk/sae_weights.safetensors", "saelens/topk/activation_scaler.json"]
    assert asked == [("someone/saes", "v1", patterns)]
    with pytest.raises(UserError, match=r"no folder 'saelens/tpok'. Did you mean 'saelens/topk'"):
        formats.load_saelens("someone/saes", subfolder="saelens/tpok")
    assert formats.load_gemma_scope("someone/scope", subfolder="gemma_scope/v1").n_latents == 12


def test_what_is_no_dictionary_says_what_is_there(copy, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"is none of jaxneuro, saelens, .*it holds model.safetensors"):
        load_dictionary(tmp_path / "other")
    with pytest.raises(UserError, match=r"empty"):
        load_dictionary(tmp_path / "empty")
    with pytest.raises(UserError, match=r"no folder|no model"):
        load_dictionary(tmp_path / "missing")
    folder = copy("saelens/topk")
    shutil.copy(FIXTURES / "sparsify" / "sae" / "sae.safetensors", folder)
    with pytest.raises(UserError, match=r"could be saelens or sparsify"):
        load_dictionary(folder)
    assert load_dictionary(folder, "saelens").k == 3
    with pytest.raises(UserError, match=r"no format 'sealens'. Did you mean 'saelens'"):
        load_dictionary(folder, "sealens")
    with pytest.raises(UserError, match=r"no format"):
        load_metadata(folder, "sealens")


def test_pickled_arrays_in_an_npz_are_refused(copy):
    folder = copy("gemma_scope/v1")
    stored = dict(np.load(folder / "params.npz"))
    np.savez(folder / "params.npz", **stored | {"threshold": np.array([print], dtype=object)}, allow_pickle=True)
    with pytest.raises(UserError, match=r"no whole .npz of arrays"):
        load_dictionary(folder)


def coder(**changes):
    d = SparseCoder(
        W_enc=jnp.ones((4, 6)), W_dec=jnp.ones((6, 4)), b_enc=jnp.zeros(6), b_dec=jnp.zeros(4), activation=TopK(2)
    )
    return dataclasses.replace(d, **changes)


HOOKS = {"model_name": "tiny", "feature_input_hook": "mlp.hook_in", "feature_output_hook": "mlp.hook_out"}


@pytest.mark.parametrize(
    ("save", "dictionary", "message"),
    [
        (formats.save_saelens, coder(activation=GroupMax(2)), "SAELens has no architecture for GroupMax"),
        (formats.save_saelens, coder(W_skip=jnp.ones((4, 4))), "no layout for a TopK transcoder"),
        (formats.save_saelens, coder(W_skip=jnp.ones((4, 4)), activation=Relu()), "b_dec subtracted"),
        (formats.save_saelens, coder(activation=JumpReLU(jnp.full(6, jnp.inf))), "threshold holds NaN or infinity"),
        (formats.save_sparsify, coder(activation=Relu()), "activation is Relu, sparsify has topk, groupmax"),
        (formats.save_sparsify, coder(W_dec=jnp.ones((6, 5)), b_dec=jnp.ones(5)), "d_in is 4 and d_out 5"),
        (formats.save_sparsify, coder(input_norm="layer_norm"), "input_norm is layer_norm"),
        (formats.save_sparsify, coder(b_enc=jnp.full(6, jnp.nan)), "encoder.bias holds NaN"),
        (formats.save_circuit_tracer, {0: coder()}, "layer 0: its activation is TopK.*layer 0: b_dec is subtracted"),
        (
            formats.save_circuit_tracer,
            {1: coder(activation=Relu(), apply_b_dec_to_input=False)},
            r"its layers are \[1\]",
        ),
    ],
)
def test_what_a_format_cannot_hold_is_not_written(tmp_path, save, dictionary, message):
    with pytest.raises(UserError, match=message):
        save(dictionary, tmp_path / "out", HOOKS)
    assert not (tmp_path / "out").exists()


def test_circuit_tracer_needs_its_hooks(tmp_path):
    d = coder(activation=Relu(), apply_b_dec_to_input=False)
    with pytest.raises(UserError, match=r"metadata lacks model_name; metadata lacks feature_input_hook"):
        formats.save_circuit_tracer({0: d}, tmp_path, {"feature_output_hook": "b"})


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("case", ["sparsify/skip_transcoder", "circuit_tracer/set_skip", "circuit_tracer/clt_jumprelu"])
def test_dtypes_are_kept_both_ways(tmp_path, case, dtype):
    small = jax.tree.map(lambda a: a.astype(dtype), load_dictionary(FIXTURES / case))
    save = formats.save_sparsify if case.startswith("sparsify") else formats.save_circuit_tracer
    again = load_dictionary(save(small, tmp_path / "a", HOOKS))
    for one, two in zip(jax.tree.leaves(small), jax.tree.leaves(again), strict=True):
        assert one.dtype == two.dtype == jnp.dtype(dtype)
        assert np.array_equal(np.asarray(one, np.float32), np.asarray(two, np.float32))


def test_weights_of_two_dtypes_are_written_in_the_wider(tmp_path):
    d = coder(activation=JumpReLU(jnp.full(6, 0.1, jnp.float32)))
    d = dataclasses.replace(d, W_enc=d.W_enc.astype(jnp.bfloat16), W_dec=d.W_dec.astype(jnp.bfloat16))
    again = load_dictionary(formats.save_saelens(d, tmp_path / "a"))
    assert again.W_enc.dtype == again.activation.threshold.dtype == jnp.float32
    assert np.array_equal(again.activation.threshold, d.activation.threshold)


@pytest.mark.parametrize(
    ("case", "changes", "message"),
    [
        ("topk", {"activation": "Gelu"}, "activation is 'Gelu', ReLU or TopK is read"),
        (
            "topk",
            {"activation_state_dict": {"k": 0, "postact_fn": "ReLU"}},
            "state_dict: k = 0 is not a",
        ),
        ("topk", {"activation_state_dict": None}, "activation_state_dict: k is missing"),
        ("topk", {"activation_state_dict": {"k": 3, "postact_fn": "Identity"}}, "followed by 'Identity'"),
        ("topk", {"activation_state_dict": {"k": 13}}, "k = 13 for 12 latents"),
        ("relu", {"activation_state_dict": {"k": 3}}, "ReLU has no state"),
        ("relu", {"extra": 5}, "unknown entry 'extra'"),
        (
            "relu",
            {"pre_bias": np.zeros(5, np.float32)},
            r"encoder.weight has shape \(12, 6\), the others say \(12, 5\)",
        ),
        ("relu", {"activation": ...}, "holds no dict with 'activation'"),
    ],
)
def test_an_autoencoder_of_openais_that_says_something_else(monkeypatch, case, changes, message):
    path = FIXTURES / "openai" / case / "7.pt"
    content = {k: v for k, v in (read_torch(path) | changes).items() if v is not ...}
    monkeypatch.setattr(openai, "read_torch", lambda _: content)
    with pytest.raises(UserError, match=message):
        formats.load_openai(path)


def test_two_flags_that_saex_does_not_store_change_the_function():
    path = FIXTURES / "saex" / "sae.safetensors"
    read = [
        formats.load_saex(path, use_encoder_bias=e, remove_decoder_bias=d) for e in (False, True) for d in (False, True)
    ]
    x = jnp.ones((1, 6))
    outputs = {np.asarray(d(x)).tobytes() for d in read}
    assert len(outputs) == 4


@pytest.mark.parametrize("name", ["scaling_factor", "finetuning_scaling_factor"])
def test_a_finetuning_scale_counts_unless_it_is_all_ones(copy, name):
    """Old files hold it whether it was used or not."""
    folder = copy("saelens5/standard")
    want = load_dictionary(folder)
    scale = np.ones(12, np.float32)
    rewrite(folder / "sae_weights.safetensors", lambda t: t.update({name: scale}))
    assert np.array_equal(load_dictionary(folder).W_dec, want.W_dec)
    scale[3] = 2.0
    rewrite(folder / "sae_weights.safetensors", lambda t: t.update({name: scale}))
    with pytest.raises(UserError, match=r"unknown tensor finetuning_scaling_factor"):  # the config says it is unused
        load_dictionary(folder)
    reconfigure(folder / "cfg.json", finetuning_scaling_factor=True)
    np.testing.assert_array_equal(load_dictionary(folder).W_dec, want.W_dec * scale[:, None])


def test_a_threshold_below_0_is_written_as_the_0_that_it_acts_as(tmp_path):
    """Here negative latents never pass; circuit-tracer would let them, so that its threshold is 0."""
    x = jnp.linspace(-2.0, 2.0, 24).reshape(6, 4)
    d = coder(activation=JumpReLU(jnp.float32(-1)), apply_b_dec_to_input=False)
    again = load_dictionary(formats.save_circuit_tracer({0: d}, tmp_path, HOOKS))[0]
    assert (again.activation.threshold == 0).all()
    assert np.array_equal(again(x), d(x))
    assert (d.encode(x) > 0).any()


@pytest.mark.parametrize(
    ("case", "theirs"), [("JumpReluAutoEncoder", -0.25), ("BatchTopKSAE", -0.25), ("MatryoshkaBatchTopKSAE", -0.25)]
)
def test_thresholds_that_were_learned_below_0_act_as_0(copy, monkeypatch, case, theirs):
    """relu(pre) where pre > threshold, as the library has it: what is below 0 stays off."""
    folder = copy(f"dictionary_learning/{case}")
    stored = read_torch(folder / "ae.pt")
    x = jnp.asarray(np.load(folder / "expected.npz")["x"])
    found = {}
    for value in (theirs, 0.0, -1.0):
        thresholds = np.full_like(stored["threshold"], value)
        monkeypatch.setattr(strict, "read_torch", lambda path, t=thresholds: stored | {"threshold": t})
        if value == -1 and case != "JumpReluAutoEncoder":  # their mark of one that training never set
            with pytest.raises(UserError, match="was never set in training"):
                load_dictionary(folder)
        else:
            found[value] = load_dictionary(folder).encode(x)
    assert (found[0.0] > 0).any()
    assert all(np.array_equal(z, found[0.0]) for z in found.values())


@pytest.mark.parametrize(
    ("case", "file", "key"),
    [
        ("saelens/standard", "cfg.json", "apply_b_dec_to_input"),
        ("saelens/topk", "cfg.json", "rescale_acts_by_decoder_norm"),
        ("saelens/training_batchtopk", "cfg.json", "rescale_acts_by_decoder_norm"),
        ("saelens5/standard", "cfg.json", "apply_b_dec_to_input"),
        ("saelens/matching_pursuit", "cfg.json", "stop_on_duplicate_support"),
        ("saelens5/standard_finetuned", "cfg.json", "finetuning_scaling_factor"),
        ("sparsify/sae", "cfg.json", "transcode"),
        ("sparsify/sae_skip", "cfg.json", "skip_connection"),
        ("llama_scope/jumprelu", "hyperparams.json", "apply_decoder_bias_to_pre_encoder"),
        ("llama_scope/jumprelu", "hyperparams.json", "sparsity_include_decoder_norm"),
    ],
)
@pytest.mark.parametrize("value", ["false", "abc", "", 0, 1, 0.5, [], [True], {}, float("nan")])
def test_switches_are_true_or_false(copy, case, file, key, value):
    folder = copy(case)
    reconfigure(folder / file, **{key: value})
    with pytest.raises(UserError, match=f"{key} = .* is not true or false"):
        load_dictionary(folder)


def loaded(folder):
    """(the dictionary, None if it is refused; what was said)."""
    try:
        return load_dictionary(folder), ""
    except UserError as e:
        return None, str(e)


ODD = ([], ["a"], {}, {"a": 1}, 3, True, float("nan"), 10**400, "x" * 100_000, "\x1b[2J\nOK")


@pytest.mark.parametrize("case", ["saelens/topk", "saelens5/topk", "sparsify/sae", "dictionary_learning/AutoEncoder",
                                  "llama_scope/topk", "gemma_scope/v2"])  # fmt: skip
def test_no_value_of_a_config_is_anything_but_read_or_refused(copy, case):
    """Every key, every odd type: the dictionary as it was, or one short error on one line, without control codes."""
    folder, want = copy(case), load_dictionary(FIXTURES / case)
    for file in folder.glob("*.json"):
        config = json.loads(file.read_text())
        inner = config.get("trainer", config)
        for key in inner:
            for value in ODD:
                before = inner[key]
                number = before is None or type(before) in (int, float)
                if (value is True and type(before) is bool) or (value == 3 and value is not True and number):
                    continue  # that is another dictionary
                inner[key] = value
                file.write_text(json.dumps(config))
                inner[key] = before
                found, said = loaded(folder)
                assert len(said) < 2000
                assert not {"\x1b", "\n"} & set(said)
                if found is not None:
                    assert jax.tree.structure(found) == jax.tree.structure(want), (key, value)
                    assert all(map(np.array_equal, jax.tree.leaves(found), jax.tree.leaves(want))), (key, value)
        file.write_text(json.dumps(config))


def npz(path, entries):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        for name, content in entries.items():
            z.writestr(name, content)


def npy(a):
    f = io.BytesIO()
    np.save(f, a)
    return f.getvalue()


def test_an_npz_is_looked_at_before_it_is_read(copy):
    """Names first, then the sizes that headers claim: nothing is made that the file cannot fill."""
    folder = copy("gemma_scope/v1")
    path = folder / "params.npz"
    entries = {f"{name}.npy": npy(a) for name, a in np.load(path).items()}
    npz(path, entries)
    assert load_dictionary(folder).n_latents == 12
    npz(path, entries | {"zz.npy": bytes(300_000_000)})  # 300 kB deflated
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match="unknown tensor zz"):
        load_dictionary(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB
    for claim in (b"(1099511627776,)", b"(9,       )"):
        header = entries["b_enc.npy"].replace(b"(12,)", claim)
        npz(path, entries | {"b_enc.npy": header})
        with pytest.raises(UserError, match=r"whole .npz"):
            load_dictionary(folder)


def test_a_folder_of_dictionaries_names_them(copy, tmp_path):
    copy("saelens/topk")
    copy("saelens/gated")
    named = r"Choose one of its folders: subfolder='saelens/gated', subfolder='saelens/topk'\."
    with pytest.raises(UserError, match=named):
        load_dictionary(tmp_path)
    assert load_dictionary(tmp_path, subfolder="saelens/topk").k == 3


def test_the_folder_of_a_run_stands_for_the_one_dictionary_in_it(tmp_path):
    save_native(coder(activation=TopK(2)), tmp_path / "run/dictionary")
    save_saelens(coder(activation=TopK(2)), tmp_path / "run/dictionary/saelens", {"hook_name": "blocks.1.hook_mlp_out"})
    assert load_dictionary(tmp_path / "run").activation.k == 2
    assert load_dictionary(tmp_path, subfolder="run").activation.k == 2
    assert load_metadata(tmp_path / "run") == {}  # of ours, not of the export
    save_native(coder(), tmp_path / "run/other")
    with pytest.raises(UserError, match=r"folders: subfolder='dictionary', subfolder='other', subfolder='dictionary/s"):
        load_dictionary(tmp_path / "run")
    for k in (1, 2):
        save_native(coder(activation=TopK(k)), tmp_path / f"sweep/dictionary/k={k}")
    with pytest.raises(UserError, match="subfolder='dictionary/k=1', subfolder='dictionary/k=2'"):
        load_dictionary(tmp_path / "sweep")


def test_the_command_names_its_flag_for_one_of_several(tmp_path, capsys):
    for seed in (0, 1):
        save_native(coder(), tmp_path / f"dictionary/seed={seed}")
    assert main(["show-dictionary", str(tmp_path), "--model", "bundled"]) == 2
    named = "--subfolder dictionary/seed=0, --subfolder dictionary/seed=1."
    assert named in capsys.readouterr().err


@pytest.mark.parametrize("kind", [TopK, AbsTopK, GroupMax])
def test_a_k_that_cannot_be_is_refused(kind):
    for k in (-1, 0, "4", 2.0, True, None):
        with pytest.raises(UserError, match=rf"{kind.__name__}: k = .* is not a whole number of at least 1"):
            kind(k)
    for call in (lambda d: d.encode(jnp.ones((1, 4))), lambda d: d.activation(jnp.ones((1, 6)))):
        with pytest.raises(UserError, match=rf"{kind.__name__}: k = 64 of 6 latents"):
            call(coder(activation=kind(64)))
