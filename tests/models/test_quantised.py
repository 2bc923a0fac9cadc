# SPDX-License-Identifier: Apache-2.0
"""Eight-bit matrices: errors of the size that rounding has, a quarter of the memory, the same numbers on every mesh."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType

from jaxneuro.errors import UserError
from jaxneuro.models import Config, Transformer, load, save_pretrained
from jaxneuro.models.layout import flatten
from jaxneuro.models.logits import model_loss
from jaxneuro.models.quantised import FORMATS, INPUTS, Quantised, matmul, quantise, quantise_matrix
from jaxneuro.taps import capture

from .conftest import CONFIGS, SMALL, random_weights
from .test_checkpoint import FIXTURES, copy, put, rewrite
from .test_moe import LAYER, layer, one_layer

KINDS = ["int8", "float8_e4m3fn"]
RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def test_numbers_on_the_grid_are_kept_exactly():
    grid = RNG.integers(-127, 128, (40, 12)).astype(np.float32)
    grid[0] = 127  # every column reaches its end, so its scale is the power of two below
    w = jnp.asarray(grid * 2.0 ** RNG.integers(-9, 9, 12), jnp.float32)
    np.testing.assert_array_equal(quantise_matrix(w, 1, "int8").astype(jnp.float32), w)
    eight = jnp.asarray(np.arange(256, dtype=np.uint8).view(jnp.float8_e4m3fn).astype(np.float32))
    eight = eight[jnp.isfinite(eight)][:, None]  # 448 is among them
    np.testing.assert_array_equal(quantise_matrix(eight, 1, "float8_e4m3fn").astype(jnp.float32), eight)


def test_int8_is_never_off_by_more_than_half_a_step_and_often_by_a_quarter():
    w = normal(500, 8)
    error = jnp.abs(quantise_matrix(w, 1, "int8").astype(jnp.float32) - w) / (jnp.abs(w).max(0, keepdims=True) / 127)
    assert error.max() < 0.5 + 1e-4
    np.testing.assert_allclose(error.mean(), 0.25, rtol=0.05)  # uniform in 0 .. 1/2


def test_float8_is_off_by_its_mantissa():
    w = normal(500, 8)
    error = jnp.abs(quantise_matrix(w, 1, "float8_e4m3fn").astype(jnp.float32) / w - 1)
    large = jnp.abs(w) > 0.01  # below are subnormal numbers
    assert error.max(where=large, initial=0) < 2**-4 + 1e-6
    assert 0.01 < error.mean(where=large) < 2**-5


@pytest.mark.parametrize("kind", KINDS)
def test_columns_of_zeros_and_of_tiny_and_huge_numbers(kind):
    w = jnp.stack([jnp.zeros(4), jnp.full(4, 1e-20), jnp.full(4, -1e30)], axis=1)
    np.testing.assert_allclose(quantise_matrix(w, 1, kind).astype(jnp.float32), w, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_matmul_is_that_of_the_matrix_it_stands_for(kind, dtype):
    x, w = normal(3, 5, 24).astype(dtype), normal(4, 6, 10)
    packed = quantise_matrix(w, 2, kind)
    y = matmul(x, packed, inputs=2)
    assert (y.shape, y.dtype) == ((3, 5, 10), dtype)
    exact = x.astype(jnp.float32) @ packed.astype(jnp.float32).reshape(24, 10)
    np.testing.assert_allclose(y.astype(jnp.float32), exact, atol=8 * float(jnp.finfo(dtype).eps) * 3)
    plain = matmul(x, w, inputs=2)
    np.testing.assert_array_equal(plain, x @ w.astype(dtype).reshape(24, 10))


def logits_of(weights, cfg, tokens):
    return np.asarray(jax.jit(Transformer(cfg, weights).apply)(weights, tokens))


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_off_by_what_rounding_predicts(kind, tokens):
    """Each of the L layers' two branches and the head add independent errors of the size of one rounding."""
    cfg = Config(**{**SMALL, "d_model": 64, "d_mlp": 128, "d_head": 16})
    weights = random_weights(cfg)
    exact, ours = (logits_of(w, cfg, tokens) for w in (weights, quantise(weights, kind)))
    error = np.linalg.norm(ours - exact) / np.linalg.norm(exact)
    w = np.asarray(weights["blocks"]["mlp"]["up"])
    rounded = np.asarray(quantise_matrix(jnp.asarray(w), 1, kind, stacked=True).astype(jnp.float32))
    one = np.linalg.norm(rounded - w) / np.linalg.norm(w)
    assert 0.5 * one < error < 4 * one * np.sqrt(2 * cfg.n_layers + 1)
    assert one < 0.03


# Folder -> the matrices that its family adds to attention's.
FOLDERS = {
    "llama-gqa": {"blocks.mlp.gate", "blocks.mlp.up", "blocks.mlp.down"},
    "mixtral": {"blocks.moe.gate", "blocks.moe.up", "blocks.moe.down"},
    "mamba-biases": {"blocks.mixer.wx", "blocks.mixer.wz", "blocks.mixer.wo"},
    "mamba2": {"blocks.mixer.wx", "blocks.mixer.wz", "blocks.mixer.wo"},
    "bdh": {"shared.enc", "shared.enc_v", "shared.dec"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("folder", FOLDERS)
def test_loading_quantised_is_loading_and_quantising(folder, kind):
    ours, whole = flatten(load(FIXTURES / folder, dtype=kind).weights), load(FIXTURES / folder).weights
    packed = {leaf for leaf, a in ours.items() if isinstance(a, Quantised)}
    assert packed == {*INPUTS} & {*ours} >= FOLDERS[folder]
    expected, whole = flatten(quantise(whole, kind)), flatten(whole)
    for leaf, a in ours.items():
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(expected[leaf]), strict=True):
            assert x.dtype == y.dtype
            np.testing.assert_array_equal(x, y, err_msg=leaf)
    for leaf in packed:  # a scale for each column of each layer's, expert's or head's own matrix
        peak = np.abs(np.asarray(whole[leaf])).max(INPUTS[leaf], keepdims=True)
        np.testing.assert_allclose(ours[leaf].scale * FORMATS[jnp.dtype(kind)], peak, rtol=1e-6)


@pytest.mark.parametrize("folder", FOLDERS)
def test_golden_numbers_in_eight_bits(folder):
    """Off by rounding, neither less nor more: tiny models, whose sums of 16 to 32 terms leave most of it."""
    model, golden = load(FIXTURES / folder, dtype="int8"), dict(np.load(FIXTURES / folder / "expected.npz"))
    ours = np.asarray(jax.jit(model.apply)(model.weights, golden["tokens"], golden["mask"]))[golden["mask"]]
    exact = golden["out"][golden["mask"]]
    assert 1e-3 < np.linalg.norm(ours - exact) / np.linalg.norm(exact) < 0.1


def test_experts_in_eight_bits_are_those_they_stand_for_in_all_three_forms():
    w, x = jax.device_put(layer(LAYER, 9))
    packed = {name: a if name == "router" else quantise_matrix(a, 1, "int8", stacked=1) for name, a in w.items()}

    @jax.jit
    def forms(w):
        looked = [capture(one_layer, [f"blocks.moe.{name}"])(w, x)[0] for name in ("weights", "post")]
        return [one_layer(w, x), *looked]

    meant = forms({name: a.astype(jnp.float32) for name, a in packed.items()})
    for ours, theirs, exact in zip(forms(packed), meant, forms(w), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=1e-4)  # values up to 30
        assert 1e-3 < float(jnp.linalg.norm(ours - exact) / jnp.linalg.norm(exact)) < 0.05


def leaf_bytes(weights):
    return sum(a.nbytes for a in jax.tree.leaves(weights))


@pytest.mark.usefixtures("this_machine")
def test_matrices_take_a_quarter_of_their_bytes_and_programs_do_not_unpack_them_all(optimised):
    cfg = Config(**{**SMALL, "n_layers": 8, "d_model": 64, "d_mlp": 256}, tied=True)
    weights = random_weights(cfg)
    packed = quantise(weights, "int8")
    blocks = leaf_bytes(weights["blocks"])
    assert 0.25 * blocks < leaf_bytes(packed["blocks"]) < 0.29 * blocks
    np.testing.assert_array_equal(packed["embed"]["tok"], weights["embed"]["tok"])
    program = jax.jit(Transformer(cfg, weights).apply).lower(packed, jnp.zeros((1, 4), jnp.int32)).compile()
    memory = program.memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 0.6 * blocks  # one layer's in float32 is an eighth, beside the eight bits' copy


def mesh(**axes):
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("axes", [{"fsdp": 2, "model": 2}, {"model": 4}, {"data": 2, "fsdp": 2}], ids=str)
def test_every_mesh_has_the_same_numbers(kind, axes):
    folder = FIXTURES / "llama-gqa"
    alone, placed = load(folder, dtype=kind), load(folder, dtype=kind, mesh=mesh(**axes))
    assert jax.tree.structure(alone.weights) == jax.tree.structure(placed.weights)
    for a, b in zip(jax.tree.leaves(alone.weights), jax.tree.leaves(placed.weights), strict=True):
        np.testing.assert_array_equal(a, b)
    up = placed.weights["blocks"]["mlp"]["up"]
    rows, columns = 16 // axes.get("fsdp", 1), 24 // axes.get("model", 1)
    assert {s.data.shape for s in up.q.addressable_shards} == {(3, rows, columns)}
    assert {s.data.shape for s in up.scale.addressable_shards} == {(3, 1, columns)}
    if axes == {"fsdp": 2, "model": 2}:
        tokens = jnp.arange(8, dtype=jnp.int32)[None]
        run = jax.jit(alone.apply)
        np.testing.assert_allclose(run(placed.weights, tokens), run(alone.weights, tokens), atol=5e-6)


@pytest.mark.parametrize(
    ("folder", "axes"),
    [("mixtral", {"expert": 2, "fsdp": 2}), ("mixtral", {"model": 4}), ("bdh", {"fsdp": 2, "model": 2})],
)
def test_experts_and_mixers_on_a_mesh(folder, axes):
    alone, placed = load(FIXTURES / folder, dtype="int8"), load(FIXTURES / folder, dtype="int8", mesh=mesh(**axes))
    jax.tree.map(np.testing.assert_array_equal, placed.weights, alone.weights)
    gate = flatten(placed.weights)["shared.enc" if folder == "bdh" else "blocks.moe.gate"]
    assert {4 * s.data.size for s in gate.q.addressable_shards} == {gate.q.size}


def test_sixteen_bit_models_stay_sixteen_bit_around_their_matrices(tmp_path):
    half = copy("llama-gqa", tmp_path / "a")
    save_pretrained(load(half, dtype=jnp.bfloat16), tmp_path / "b")
    model = load(tmp_path / "b", dtype=jnp.int8)
    assert model.weights["embed"]["tok"].dtype == jnp.bfloat16
    assert model(jnp.zeros((1, 3), jnp.int32)).dtype == jnp.bfloat16


def test_quantised_weights_have_no_gradient_but_everything_else_has(tokens):
    cfg = CONFIGS["mistral"]
    weights = quantise(random_weights(cfg), "float8_e4m3fn")
    run = Transformer(cfg, weights).apply

    def through(scales):
        blocks = {**weights["blocks"], "mlp": {**weights["blocks"]["mlp"], "up": scales}}
        return run({**weights, "blocks": blocks}, tokens).sum()

    with pytest.raises(UserError, match="quantised weights have no gradient"):
        jax.grad(through)(weights["blocks"]["mlp"]["up"])
    with pytest.raises(UserError, match="quantised weights have no gradient"):
        jax.grad(lambda w: model_loss(w, tokens, cfg=cfg, values=80)[0].sum())(weights)
    with pytest.raises(TypeError, match="int8"):  # JAX's own check comes first
        jax.grad(through)(quantise(random_weights(cfg), "int8")["blocks"]["mlp"]["up"])

    def of_embedding(tok, values):
        return model_loss({**weights, "embed": {"tok": tok}}, tokens, cfg=cfg, values=values)[0].sum()

    site = "blocks.0.resid_post@grad"
    ours, theirs = (
        jax.jit(capture(jax.grad(lambda e, v=v: of_embedding(e, v)), [site]))(weights["embed"]["tok"])
        for v in (80, 2**26)
    )
    np.testing.assert_allclose(ours[0], theirs[0], atol=1e-4)
    np.testing.assert_allclose(ours[1][site], theirs[1][site], atol=1e-5)
    assert jnp.abs(theirs[1][site]).max() > 1e-3


def test_everything_that_reads_weights_takes_them(tokens):
    cfg = CONFIGS["mistral"]
    model = Transformer(cfg, quantise(random_weights(cfg), "int8"))
    _, state = nnx.split(model)
    assert {a.dtype for a in jax.tree.leaves(state)} == {jnp.dtype(jnp.int8), jnp.dtype(jnp.float32)}
    out, acts = jax.jit(capture(model.apply, ["blocks.1.attn.result"]))(model.weights, tokens)
    assert acts["blocks.1.attn.result"].shape == (2, 9, 4, 16)
    np.testing.assert_allclose(out, jax.jit(model.apply)(model.weights, tokens), atol=1e-5)
    parts = model.apply(model.weights, tokens, start_at=2, resid=model.apply(model.weights, tokens, stop_at=2))
    np.testing.assert_allclose(parts, out, atol=1e-4)


REFUSED = {
    "four bits": ({"dtype": "int4"}, "no weights of dtype 'int4'. Known: .*int8, float8_e4m3fn"),
    "integers": ({"dtype": jnp.int32}, "no weights of dtype"),
    "a typing error": ({"dtype": "bfloat"}, "no weights of dtype 'bfloat'"),
    "other eight bits": ({"dtype": jnp.float8_e5m2}, "no weights of dtype"),
    "NaN": ({"dtype": "int8", "allow_nonfinite": True}, "int8 cannot hold NaN"),
}


@pytest.mark.parametrize(("how", "message"), REFUSED.values(), ids=list(REFUSED))
def test_other_dtypes_are_refused(how, message):
    with pytest.raises(UserError, match=message):
        load(FIXTURES / "llama-gqa", **how)


def test_what_eight_bits_cannot_do_is_said(tmp_path, tokens):
    with pytest.raises(UserError, match=r"cannot quantise to 'float16'\. Known: int8, float8_e4m3fn"):
        quantise_matrix(normal(2, 2), 1, "float16")
    with pytest.raises(UserError, match="quantised weights are not saved"):
        save_pretrained(load(FIXTURES / "llama-gqa", dtype="int8"), tmp_path)
    folder, up = copy("llama-gqa", tmp_path / "nan"), "model.layers.1.mlp.up_proj.weight"
    rewrite(folder, put(up, np.full((24, 16), np.nan, np.float32)))
    with pytest.raises(UserError, match=f"NaN or infinity in {up}"):
        load(folder, dtype="int8")


def test_checkpoints_that_are_quantised_already_are_refused(tmp_path):
    shutil.copytree(FIXTURES / "llama-gqa", tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    stored = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": stored}))
    with pytest.raises(UserError, match=r"quantization_config \(fp8\).*in 16 bits"):
        load(tmp_path)


def test_formats_are_as_large_as_their_dtypes():
    assert {str(d): limit for d, limit in FORMATS.items()} == {"int8": 127, "float8_e4m3fn": 448}
    assert float(jnp.finfo(jnp.float8_e4m3fn).max) == 448
