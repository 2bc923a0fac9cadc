# SPDX-License-Identifier: Apache-2.0
import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import AxisType

from jaxneuro.errors import UserError
from jaxneuro.io import read_safetensors, write_safetensors
from jaxneuro.models import Transformer, load, save_pretrained
from jaxneuro.models.match import Source

from . import folders
from .folders import drop, equal, keeps, put, rewrite

FIXTURES = Path(__file__).parents[1] / "parity" / "fixtures"
CASES = sorted(p.parent.name for p in FIXTURES.glob("*/config.json"))
copy = functools.partial(folders.copy, FIXTURES)


@pytest.mark.parametrize("case", CASES)
def test_what_was_loaded_is_saved_byte_for_byte(case, tmp_path):
    model = load(FIXTURES / case)
    save_pretrained(model, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == (FIXTURES / case / "model.safetensors").read_bytes()
    again = load(tmp_path)
    assert again.cfg == model.cfg
    equal(again, model)
    moved = {"rope_parameters", "dtype", "transformers_version"}
    if case in ("t5-gated", "mt5"):  # of which transformers 5 says that they are tied, whatever it stores
        assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is model.cfg.tied is False
        moved.add("tie_word_embeddings")
    keeps(FIXTURES / case, tmp_path, but=moved)


def test_a_model_made_here_is_saved(model, tmp_path):
    save_pretrained(model, tmp_path / "new" / "folder")
    again = load(tmp_path / "new" / "folder")
    assert again.cfg == model.cfg
    equal(again, model)


def test_dtypes(tmp_path):
    folder = copy("llama-gqa", tmp_path)
    stored = load(folder)
    half = load(folder, dtype=jnp.bfloat16)
    for a, b in zip(jax.tree.leaves(stored.weights), jax.tree.leaves(half.weights), strict=True):
        assert (a.dtype, b.dtype) == (jnp.float32, jnp.bfloat16)
        np.testing.assert_array_equal(a.astype(jnp.bfloat16), b)
    save_pretrained(half, tmp_path / "half")
    assert json.loads((tmp_path / "half" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    equal(load(tmp_path / "half"), half)


NORM, UP = "model.norm.weight", "model.layers.1.mlp.up_proj.weight"
NAN = np.full(16, np.nan, np.float32)
WRONG_TENSORS = {
    "missing": (drop(NORM, UP), rf"missing: {UP}, {NORM}"),
    "extra": (put("model.layers.3.mlp.up_proj.weight", np.zeros((24, 16), np.float32)), "not part of .*layers.3.mlp"),
    "another head": (put("score.weight", np.zeros((2, 16), np.float32)), "not part of this architecture: score.weight"),
    "a bias too many": (put("model.layers.0.self_attn.q_proj.bias", NAN), "not part of .*q_proj.bias"),
    "wrong shape": (
        put(NORM, np.zeros(15, np.float32)),
        r"model.norm.weight has shape \[15\], the config needs \[16\]",
    ),
    "transposed": (put(UP, np.zeros((16, 24), np.float32)), r"\[16, 24\], the config needs \[24, 16\]: mlp embed"),
    "integers": (put(NORM, np.zeros(16, np.int32)), "model.norm.weight has dtype int32"),
    "eight bits": (put(NORM, np.zeros(16, ml_dtypes.float8_e4m3fn)), "has dtype float8_e4m3fn"),
    "mixed dtypes": (put(UP, np.zeros((24, 16), np.float16)), "has float16 and float32 in different layers"),
    "NaN": (put(NORM, NAN), "NaN or infinity in model.norm.weight"),
    "infinity": (put(UP, np.full((24, 16), np.inf, np.float32)), f"NaN or infinity in {UP}"),
    "no head": (drop("lm_head.weight"), "missing: lm_head.weight"),
}


@pytest.mark.parametrize(("change", "message"), WRONG_TENSORS.values(), ids=list(WRONG_TENSORS))
def test_weights_that_do_not_fit(tmp_path, change, message):
    folder = copy("llama-gqa", tmp_path)
    rewrite(folder, change)
    with pytest.raises(UserError, match=message) as e:
        load(folder)
    assert str(folder) in str(e.value)


def test_all_problems_are_told_at_once(tmp_path):
    folder = copy("llama-gqa", tmp_path)
    rewrite(folder, drop(NORM))
    rewrite(folder, put("odd", NAN))
    rewrite(folder, put(UP, np.zeros((2, 2), np.int8)))
    with pytest.raises(UserError) as e:
        load(folder)
    assert [line for line in str(e.value).splitlines() if line.startswith("  - ")] == [
        f"  - missing: {NORM}",
        "  - not part of this architecture: odd",
        f"  - {UP} has shape [2, 2], the config needs [24, 16]: mlp embed",
        f"  - {UP} has dtype int8; weights are float16, bfloat16, float32 or float64",
        "  - model.layers.{i}.mlp.up_proj.weight has float32 and int8 in different layers: say which with dtype=",
    ]


def test_nan_and_mixed_dtypes_can_be_asked_for(tmp_path):
    folder = copy("llama-gqa", tmp_path)
    rewrite(folder, put(NORM, NAN))
    rewrite(folder, lambda t: {**t, UP: t[UP].astype(np.float16)})
    model = load(folder, dtype=jnp.float32, allow_nonfinite=True)
    assert jnp.isnan(model.weights["final_norm"]["scale"]).all()


SIZES = {
    "num_hidden_layers": [2, 4],
    "hidden_size": [8, 32],
    "num_attention_heads": [2, 8],
    "num_key_value_heads": [1, 4],
    "head_dim": [4],
    "intermediate_size": [23],
    "vocab_size": [41],
}


@pytest.mark.parametrize("key", SIZES)
def test_every_wrong_size_is_refused(tmp_path, key):
    for value in SIZES[key]:
        folder = copy("llama-gqa", tmp_path / str(value), **{key: value})
        with pytest.raises(UserError, match="do not fit"):
            load(folder)


BERT_SIZES = {"max_position_embeddings": 31, "type_vocab_size": 3}


@pytest.mark.parametrize("key", BERT_SIZES)
def test_wrong_sizes_of_tables_are_refused(tmp_path, key):
    with pytest.raises(UserError, match="do not fit"):
        load(copy("bert", tmp_path, **{key: BERT_SIZES[key]}))


def test_files_that_are_cut_short_or_missing(tmp_path):
    folder = copy("gpt2", tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    with pytest.raises(UserError, match=r"model\.safetensors is not a whole safetensors file(?s:.*)cut short"):
        load(folder)
    (folder / "config.json").write_text('{"model_type": "gpt2"')
    with pytest.raises(UserError, match=r"config\.json is not valid JSON"):
        load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"cannot read .*config\.json"):
        load(folder)


def test_architectures_that_are_not_ported(tmp_path):
    with pytest.raises(UserError, match="no model type 'rwkv'"):
        load(copy("gpt2", tmp_path / "a", model_type="rwkv"))
    rope = {"rope_type": "ntk", "factor": 2.0, "rope_theta": 1e4}
    with pytest.raises(UserError, match="no rope type 'ntk'"):
        load(copy("llama-gqa", tmp_path / "b", rope_parameters=rope))


def test_copies_of_tied_tensors(tmp_path):
    folder, original = copy("llama-mha-tied", tmp_path), "model.embed_tokens.weight"
    plain = load(folder)
    rewrite(folder, lambda t: {**t, "lm_head.weight": t[original]})
    equal(load(folder), plain)
    rewrite(folder, lambda t: {**t, "lm_head.weight": t[original] + 1})
    with pytest.raises(UserError, match=r"lm_head\.weight should repeat model\.embed_tokens\.weight"):
        load(folder)
    rewrite(folder, lambda t: {**drop(original)(t), "lm_head.weight": t[original]})
    equal(load(folder), plain)


def test_buffers_are_ignored(tmp_path):
    folder = copy("llama-gqa", tmp_path / "llama")
    rewrite(folder, put("model.layers.0.self_attn.rotary_emb.inv_freq", NAN))
    load(folder)
    folder = copy("gpt2", tmp_path / "gpt2")
    rewrite(folder, put("transformer.h.0.attn.bias", np.tri(4, dtype=bool)))
    load(folder)
    folder = copy("bert", tmp_path / "bert")
    rewrite(folder, put("embeddings.position_ids", np.arange(4)))
    load(folder)


def rename(change):
    return lambda tensors: {change(n): a for n, a in tensors.items()}


def test_names_without_the_prefix(tmp_path):
    folder = copy("gpt2", tmp_path)
    plain = load(folder)
    rewrite(folder, rename(lambda n: n.removeprefix("transformer.")))
    equal(load(folder), plain)
    assert load(folder).cfg.has_head


def test_a_base_model_ends_in_its_hidden_state(tmp_path):
    base = load(FIXTURES / "llama-base")
    assert not base.cfg.has_head
    save_pretrained(base, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["LlamaModel"]


def test_old_bert_names(tmp_path):
    folder = copy("bert", tmp_path)
    plain = load(folder)
    rewrite(
        folder, rename(lambda n: n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("Norm.bias", "Norm.beta"))
    )
    rewrite(folder, rename(lambda n: f"bert.{n}"))
    equal(load(folder), plain)


def test_the_tensors_say_whether_there_is_a_head_and_a_pooler(tmp_path):
    assert (load(FIXTURES / "bert").cfg.pooler, load(FIXTURES / "bert").cfg.has_head) == (True, False)
    assert (load(FIXTURES / "bert-mlm").cfg.pooler, load(FIXTURES / "bert-mlm").cfg.has_head) == (False, True)
    folder = copy("bert", tmp_path)
    rewrite(folder, drop("pooler.dense.weight", "pooler.dense.bias"))
    assert not load(folder).cfg.pooler
    rewrite(folder, put("pooler.dense.weight", np.zeros((16, 16), np.float32)))
    with pytest.raises(UserError, match=r"missing: bert\.pooler\.dense\.bias"):
        load(folder)


def test_shards_load_as_one(tmp_path):
    folder = copy("qwen3", tmp_path)
    plain = load(folder)
    tensors = dict(read_safetensors(folder / "model.safetensors"))
    where = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(tensors)}
    for shard in set(where.values()):
        write_safetensors(folder / shard, {n: np.array(a) for n, a in tensors.items() if where[n] == shard})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    (folder / "model.safetensors").unlink()
    equal(load(folder), plain)
    (folder / "model-1.safetensors").unlink()
    with pytest.raises(UserError, match=r"lacks model-1\.safetensors of the 2 files"):
        load(folder)


def mesh(kind=AxisType.Auto, **axes):
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(kind,) * len(axes))


def test_sharded_over_a_mesh(tmp_path):
    folder = FIXTURES / "llama-gqa"
    plain, placed = load(folder), load(folder, mesh=mesh(fsdp=2, model=2))
    equal(plain, placed)
    wq = placed.weights["blocks"]["attn"]["wq"]
    assert wq.shape == (3, 16, 4, 8)
    assert {s.data.shape for s in wq.addressable_shards} == {(3, 8, 2, 8)}
    assert {s.data.shape for s in placed.weights["embed"]["tok"].addressable_shards} == {(20, 8)}
    golden = dict(np.load(folder / "expected.npz"))
    run = jax.jit(plain.apply)
    out = run(placed.weights, golden["tokens"], golden["mask"])
    np.testing.assert_allclose(out, run(plain.weights, golden["tokens"], golden["mask"]), atol=5e-6)
    save_pretrained(placed, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_each_device_reads_only_its_slice(monkeypatch):
    read = []
    views = Source.views

    def watched(self, tensors):
        return [_Watched(v) for v in views(self, tensors)] if "wq" in self.row.leaves[0] else views(self, tensors)

    class _Watched:
        def __init__(self, array):
            self.array, self.shape, self.dtype = array, array.shape, array.dtype

        def __getitem__(self, index):
            read.append(self.array[index].shape)
            return self.array[index]

    monkeypatch.setattr(Source, "views", watched)
    load(FIXTURES / "llama-gqa", mesh=mesh(model=4))
    assert set(read) == {(16, 1, 8)}  # one head of four


def test_what_does_not_divide_is_replicated_and_said(caplog):
    with caplog.at_level("WARNING", logger="jaxneuro.models"):
        model = load(FIXTURES / "llama-gqa", mesh=mesh(model=4))
    assert "blocks.attn.wk: axis 'kv_heads' of length 2 is replicated, the mesh axis 'model' of 4" in caplog.text
    assert {s.data.shape for s in model.weights["blocks"]["attn"]["wk"].addressable_shards} == {(3, 16, 2, 8)}
    assert "wq" not in caplog.text


def test_explicit_meshes_are_refused():
    with pytest.raises(UserError, match=r"explicit mesh axes \('data', 'model'\).*AxisType\.Auto,\) \* 2"):
        load(FIXTURES / "llama-gqa", mesh=mesh(AxisType.Explicit, data=2, model=2))


def test_a_mesh_with_only_data_replicates_the_weights(caplog):
    model = load(FIXTURES / "llama-gqa", mesh=mesh(data=4))
    assert all(a.is_fully_replicated for a in jax.tree.leaves(model.weights))
    assert not caplog.text


def test_a_full_disk_leaves_nothing_half_written(llama, tmp_path, monkeypatch):
    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="No space left"):
        save_pretrained(llama, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_architecture_without_a_class_is_not_saved(llama, tmp_path):
    odd = Transformer(dataclasses.replace(llama.cfg, norm_eps=1e-6, causal=False), llama.weights)
    with pytest.raises(UserError, match="cannot express causal=False"):
        save_pretrained(odd, tmp_path)
    assert list(tmp_path.iterdir()) == []
