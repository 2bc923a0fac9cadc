# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from jaxneuro.errors import UserError
from jaxneuro.io import read_safetensors, write_safetensors
from jaxneuro.models import Config, Transformer, config_from_hf, config_to_hf, init, layout, load, save_pretrained
from jaxneuro.models.layout import flatten, nest
from jaxneuro.models.mixers import Bdh, Mamba, Mamba2
from jaxneuro.models.mixers.mamba import _in_parallel, _in_turn
from jaxneuro.models.mixers.parts import every_state, in_chunks
from jaxneuro.models.stepping import step
from jaxneuro.taps import capture, intervene, set_to, sites, zero

from ..by_numpy import by_numpy
from ..parity.conftest import FIXTURES, open_case
from .conftest import SMALL, random_weights

PLAIN = {"n_layers": 2, "d_model": 8, "d_vocab": 40}
BDH = {"norm": "plain", "norm_placement": "post", "embed_norm": True, "act": "relu", "norm_eps": 1e-5}
CONFIGS = {
    "mamba": Config(**PLAIN, family="mamba", tied=True, mixer=Mamba(d_inner=16, d_state=4, dt_rank=2, bias=True)),
    "mamba2": Config(
        **PLAIN,
        family="mamba2",
        mixer=Mamba2(n_heads=4, d_head=4, n_groups=2, d_state=4, dt_limits=(0.01, 2.0), conv_bias=False),
    ),
    "bdh": Config(**PLAIN, **BDH, family="bdh", mixer=Bdh(n_heads=2, n_neurons=16)),
}
LENGTH = 150  # two chunks of 64 and a part of one
ALIKE = {"atol": 2e-5, "rtol": 1e-5}  # float32, sums in another order


@pytest.fixture(scope="module", params=CONFIGS)
def model(request):
    cfg = CONFIGS[request.param]
    return Transformer(cfg, random_weights(cfg))


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(3).integers(0, 40, (2, LENGTH)).astype(np.int32)


@pytest.fixture(scope="module")
def compiled(model):
    return jax.jit(model.apply)


@pytest.fixture(scope="module")
def whole(model, compiled, tokens):
    return np.asarray(compiled(model.weights, tokens))


@pytest.fixture(scope="module")
def short(tokens):
    """Within one chunk, where that is enough: less to compile."""
    return tokens[:, :30]


def run(model, tokens, *names, edits=(), mask=None):
    """The residual stream (or what is asked for) of a model, maybe edited."""
    fn = intervene(model.apply, list(edits)) if edits else model.apply
    return by_numpy(capture(fn, [f"blocks.*.{n}" for n in names]))(model.weights, tokens, mask)


def test_chunks_are_the_recurrence_one_token_at_a_time(model, tokens, whole):
    out, acts = run(model, tokens, "mixer.state")
    np.testing.assert_allclose(out, whole, **ALIKE)
    assert acts["blocks.*.mixer.state"].shape[:3] == (2, 2, LENGTH)


@pytest.mark.parametrize("name", ["mamba", "mamba-biases", "mamba2", "mamba2-biases", "bdh"])
def test_the_recurrence_is_transformers(name):
    case = open_case(name)
    with jax.default_matmul_precision("highest"):
        out = by_numpy(capture(case.model.apply, ["blocks.*.mixer.state"]))(case.model.weights, *case.inputs)[0]
    assert case.error(out) < 1e-5


def test_the_explicit_recurrence_is_a_loop():
    rng = np.random.default_rng(0)
    decay, write = rng.uniform(0, 1, (2, 5, 3)), rng.normal(size=(2, 5, 3))
    h, expected = np.ones((2, 3)), []
    for t in range(5):
        h = decay[:, t] * h + write[:, t]
        expected.append(h)
    found = by_numpy(every_state)(decay.astype(np.float32), write.astype(np.float32), np.ones((2, 3), np.float32))
    np.testing.assert_allclose(found, np.stack(expected, 1), atol=1e-6)


def test_a_chunk_in_parallel_is_a_chunk_in_turn():
    rng = np.random.default_rng(0)
    shapes = [(2, 9, 6), (2, 9, 6), (2, 9, 4), (2, 9, 4)]
    dt, *rest = (rng.normal(size=s).astype(np.float32) for s in shapes)
    part = (np.log1p(np.exp(dt)), *rest)
    a = -rng.uniform(0.1, 3, (6, 4)).astype(np.float32)
    before = rng.normal(size=(2, 6, 4)).astype(np.float32)

    def both(form):
        def total(part):
            last, y = form(a, before, part)
            return (last * last).sum() + (y * y).sum(), (last, y)

        return by_numpy(jax.grad(total, has_aux=True))(part)

    for one, other in zip(*(jax.tree.leaves(both(form)) for form in (_in_parallel, _in_turn)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("length", [1, 3, 7, 10, 11])
def test_chunks_of_any_length_give_every_token_back(length):
    x = np.arange(20, dtype=np.float32).reshape(2, 10)

    def add(total, part):
        sums = total[:, None] + jnp.cumsum(part, axis=1)
        return sums[:, -1], sums

    last, sums = by_numpy(lambda x: in_chunks(add, jnp.zeros(2), x, length))(x)
    np.testing.assert_array_equal(sums, np.cumsum(x, axis=1))
    np.testing.assert_array_equal(last, x.sum(1))


def test_a_prompt_and_then_token_by_token_is_the_whole_text(model, tokens, whole):
    one = by_numpy(lambda w, t, s: step(w, t, s, cfg=model.cfg))
    logits, state = by_numpy(lambda w, t: step(w, t, cfg=model.cfg))(model.weights, tokens[:, :100])
    outs, structure = [logits], jax.tree.map(jnp.shape, state)
    for i in range(100, LENGTH):
        logits, state = one(model.weights, tokens[:, i : i + 1], state)
        outs.append(logits)
    assert jax.tree.map(jnp.shape, state) == structure
    np.testing.assert_allclose(np.concatenate(outs, axis=1), whole, **ALIKE)


def test_a_padded_prompt_goes_on_as_the_whole_text(model, tokens):
    """Row 0 is padded on the right of its parts, row 1 on the left, all of the first part and some of the second."""
    mask = np.ones((2, 12), bool)
    mask[1, :5] = False
    parts = (slice(0, 4), slice(4, 9), slice(9, 12))

    @by_numpy
    def both(weights, tokens):
        state, outs = None, []
        for part in parts:
            logits, state = step(weights, tokens[:, part], state, cfg=model.cfg, mask=mask[:, part])
            outs.append(logits)
        real = np.array([[True] * 6 + [False] * 3, [True] * 9])
        cut, state = step(weights, tokens[:, :9], cfg=model.cfg, mask=real & mask[:, :9])
        _, state = step(weights, tokens[:, :3], state, cfg=model.cfg, mask=np.array([[False] * 3, [True] * 3]))
        after, state = step(weights, tokens[:, 6:9], state, cfg=model.cfg)
        whole = model.apply(weights, tokens[:, :12], mask)
        return whole, jnp.concatenate(outs, axis=1), cut, after, state.at

    whole, outs, cut, after, at = both(model.weights, tokens)
    np.testing.assert_allclose(outs[mask], whole[mask], **ALIKE)
    np.testing.assert_allclose(cut[0, :6], whole[0, :6], **ALIKE)
    np.testing.assert_allclose(after[0], whole[0, 6:9], **ALIKE)  # neither padding nor a part of it alone was read
    np.testing.assert_array_equal(at, [9, 15])


def test_a_step_needs_a_mixer():
    cfg = Config(**SMALL)
    with pytest.raises(UserError, match="this llama model has attention, which has no state"):
        step(random_weights(cfg), jnp.zeros((1, 2), jnp.int32), cfg=cfg)


@pytest.mark.parametrize("name", ["mamba2", "bdh"])  # mamba here has a bias, which its convolution sees at padding
def test_padding_on_the_left_is_as_if_the_text_began_there(name, tokens):
    model = Transformer(CONFIGS[name], random_weights(CONFIGS[name]))
    padded, mask = tokens[:, :20], np.arange(20) >= np.array([[0], [7]])
    fn = by_numpy(model.apply)
    out, other = (fn(model.weights, ids, mask) for ids in (padded, np.where(mask, padded, np.int32(1))))
    np.testing.assert_allclose(out[1, 7:], fn(model.weights, padded[1:, 7:])[0], **ALIKE)
    np.testing.assert_array_equal(out[mask], other[mask])
    assert np.isfinite(out).all()


def test_gradients_of_both_forms_agree_and_reach_every_leaf(model, tokens):
    def loss(weights, fn):
        return jnp.square(fn(weights, tokens)).mean()

    explicit = intervene(model.apply, [zero("blocks.0.mixer.state", pos=[])])
    fast, slow = (by_numpy(jax.grad(lambda w, f=f: loss(w, f)))(model.weights) for f in (model.apply, explicit))
    fast, slow = flatten(fast), flatten(slow)
    for leaf in fast:
        assert np.isfinite(fast[leaf]).all(), leaf
        assert float(np.abs(fast[leaf]).max()) > 0, leaf
        scale = float(np.abs(fast[leaf]).max())
        np.testing.assert_allclose(slow[leaf], fast[leaf], atol=1e-4 * scale, rtol=1e-4, err_msg=leaf)


def test_vmap_over_texts_is_a_batch(model, short):
    each = by_numpy(jax.vmap(lambda t: model.apply(model.weights, t[None])[0]))(short)
    np.testing.assert_allclose(each, by_numpy(model.apply)(model.weights, short), **ALIKE)


def test_a_text_does_not_see_what_comes_after(model, compiled, tokens, whole):
    other = tokens.copy()
    other[:, 100] = (other[:, 100] + 1) % 40
    changed = np.asarray(compiled(model.weights, other))
    np.testing.assert_allclose(changed[:, :100], whole[:, :100], **ALIKE)
    assert (np.abs(changed - whole)[:, 100:].max((0, 2)) > 0).any()


SITES = {
    "mamba": {"x", "conv", "dt", "B", "C", "y", "gate", "out"},
    "mamba2": {"x", "conv", "dt", "B", "C", "y", "gate", "out"},
    "bdh": {"x", "a", "y", "xy", "out"},
}


def test_every_site_is_there(model, tokens):
    found = {s.name for s in sites(model.apply, model.weights, tokens[:, :9])}
    norms = {"ln1_post", "ln1"} if model.cfg.family == "bdh" else {"ln1"}
    expected = {f"blocks.mixer.{n}" for n in SITES[model.cfg.family] | {"state", "in"}} | {
        "embed",
        "unembed.in",
        "logits",
    }
    expected |= {f"blocks.{n}.{part}" for n in norms for part in ("scale", "normalized")}
    expected |= {"blocks.resid_pre", "blocks.resid_post"}
    assert found == expected | ({"ln_final.scale", "ln_final.normalized"} if model.cfg.family != "bdh" else set())


def test_states_exist_only_when_wanted(model, tokens):
    def program(fn):
        return str(jax.make_jaxpr(fn)(model.weights, tokens[:, :9]))

    assert "name=blocks.mixer.state" not in program(model.apply)
    assert "name=blocks.mixer.state" in program(capture(model.apply, ["blocks.*.mixer.state"]))


def test_parts_agree_with_the_whole(model, short):
    def parts(weights):
        return model.apply(weights, short, start_at=1, resid=model.apply(weights, short, stop_at=1))

    np.testing.assert_allclose(by_numpy(parts)(model.weights), by_numpy(model.apply)(model.weights, short), **ALIKE)


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_a_closed_gate_silences_its_layer_and_no_other(name, short):
    cfg = dataclasses.replace(CONFIGS[name], mixer=dataclasses.replace(CONFIGS[name].mixer, bias=False))
    model = Transformer(cfg, random_weights(cfg))
    out, acts = run(model, short, "mixer.out", "resid_pre", "resid_post", edits=[zero("blocks.1.mixer.gate")])
    written, before, after = (acts[f"blocks.*.{n}"] for n in ("mixer.out", "resid_pre", "resid_post"))
    np.testing.assert_array_equal(written[1], 0)
    np.testing.assert_array_equal(after[1], before[1])
    assert np.abs(written[0]).max() > 0.1
    assert np.isfinite(out).all()


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_without_b_nothing_is_stored_and_only_the_skip_is_left(name, short):
    model = Transformer(CONFIGS[name], random_weights(CONFIGS[name]))
    asked = ["mixer.state", "mixer.y", "mixer.conv"]
    acts = run(model, short, *asked, edits=[zero("blocks.0.mixer.B")])[1]
    np.testing.assert_array_equal(acts["blocks.*.mixer.state"][0], 0)
    assert np.abs(acts["blocks.*.mixer.state"][1]).max() > 0.1
    skip = np.asarray(model.weights["blocks"]["mixer"]["D"])[0]
    skip = skip[:, None] if name == "mamba2" else skip
    np.testing.assert_array_equal(acts["blocks.*.mixer.y"][0], acts["blocks.*.mixer.conv"][0] * skip)


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_no_time_passes_without_a_time_step(name, short):
    model = Transformer(CONFIGS[name], random_weights(CONFIGS[name]))
    still = zero("blocks.0.mixer.dt", pos=range(10, 20))
    states = run(model, short, "mixer.state", edits=[still])[1]["blocks.*.mixer.state"][0]
    np.testing.assert_array_equal(states[:, 10:20], np.broadcast_to(states[:, 9:10], states[:, 10:20].shape))
    assert np.abs(states[:, 20] - states[:, 19]).max() > 1e-3


def test_an_edited_state_is_read_where_it_is(model, short):
    name = "mixer.a" if model.cfg.family == "bdh" else "mixer.y"
    plain, edited = (
        run(model, short, name, edits=e)[1][f"blocks.*.{name}"][0]
        for e in ([set_to("blocks.0.mixer.state", 0.0, pos=29)], [set_to("blocks.0.mixer.state", 5.0, pos=12)])
    )
    moved = np.abs(np.asarray(edited - plain)).reshape(2, 30, -1).max((0, 2)) > 1e-4
    assert list(np.flatnonzero(moved)) == [12, 29]


def test_a_hatchling_reads_its_synapses_before_it_writes_them(tokens):
    cfg = CONFIGS["bdh"]
    model = Transformer(cfg, random_weights(cfg))
    acts = run(model, tokens[:, :9], "mixer.state", "mixer.x", "mixer.a", "resid_pre")[1]
    synapses, x, a, resid = (
        np.asarray(acts[f"blocks.*.{n}"][1], np.float64) for n in ("mixer.state", "mixer.x", "mixer.a", "resid_pre")
    )
    np.testing.assert_array_equal(synapses[:, 0], 0)
    assert (x >= 0).all()
    assert 0.2 < (x > 0).mean() < 0.8
    pairs = (x[..., ::2] + 1j * x[..., 1::2]) * np.exp(
        1j * np.arange(9)[:, None] * (2.0**16) ** (-np.arange(0, 16, 2) / 16)
    )[None, :, None]
    turned = np.stack([pairs.real, pairs.imag], -1).reshape(x.shape)
    written = np.einsum("bthn,btd->bthnd", turned, resid)
    np.testing.assert_allclose(np.cumsum(written, 1)[:, :-1], synapses[:, 1:], atol=1e-4)
    np.testing.assert_allclose(np.einsum("bthn,bthnd->bthd", turned, synapses), a, atol=1e-4)


def test_the_residual_stream_is_float32_where_asked_for(short):
    wide = CONFIGS["mamba"]
    narrow = dataclasses.replace(wide, mixer=dataclasses.replace(wide.mixer, residual_in_float32=False))
    weights = random_weights(wide)
    half = jax.tree.map(lambda a: np.asarray(a).astype(jnp.bfloat16), weights)
    exact = by_numpy(Transformer(wide, weights).apply)(weights, short)
    errors = {}
    for name, cfg in (("wide", wide), ("narrow", narrow)):
        fn = Transformer(cfg, half).apply
        out, acts = by_numpy(capture(fn, ["blocks.0.resid_post", "blocks.0.mixer.state"]))(half, short)
        dtype = jnp.float32 if name == "wide" else jnp.bfloat16
        assert acts["blocks.0.resid_post"].dtype == dtype
        assert (out.dtype, acts["blocks.0.mixer.state"].dtype) == (jnp.bfloat16, jnp.float32)
        errors[name] = float(np.abs(out.astype(np.float32) - exact).mean())
    assert 0 < errors["wide"] < errors["narrow"] < 0.1 * float(np.abs(exact).mean())


WRONG = {
    "attention beside a mixer": (
        lambda: dataclasses.replace(CONFIGS["mamba"], n_heads=4),
        "n_heads belongs to attention",
    ),
    "a switch of attention": (lambda: dataclasses.replace(CONFIGS["mamba2"], qkv_bias=True), "qkv_bias belongs to"),
    "neither": (lambda: Config(**PLAIN), "n_heads=0 is not a positive whole number"),
    "norms elsewhere": (
        lambda: dataclasses.replace(CONFIGS["bdh"], norm_placement="pre"),
        r"mixer=Bdh\(\.\.\.\) has norm_placement='post'",
    ),
    "a size": (lambda: Mamba(d_inner=0, dt_rank=1), "Mamba: d_inner=0 is not a positive whole number"),
    "groups": (lambda: Mamba2(n_heads=4, d_head=2, n_groups=3), "n_heads=4 is not a multiple of n_groups=3"),
    "limits": (lambda: Mamba2(n_heads=4, d_head=2, dt_limits=(1.0, 0.5)), r"dt_limits=\(1.0, 0.5\) is no interval"),
    "an odd neuron": (lambda: Bdh(n_heads=2, n_neurons=7), "n_neurons=7 must be even"),
}


@pytest.mark.parametrize(("make", "message"), WRONG.values(), ids=list(WRONG))
def test_contradictions_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


HF = {"hidden_size": 8, "num_hidden_layers": 2, "vocab_size": 40}
WRONG_HF = {
    "Mamba-2's time steps in Mamba": (
        {"model_type": "mamba", "time_step_limit": [0.1, 1.0]},
        r"time_step_limit=\[0.1, 1.0\] is not supported for mamba",
    ),
    "one limit": ({"model_type": "mamba2", "time_step_limit": [0.1]}, r"time_step_limit = \[0.1\] is not \[lowest"),
    "no number": ({"model_type": "mamba2", "time_step_limit": [0.1, "x"]}, "is not"),
    "heads": ({"model_type": "mamba2", "num_heads": 3, "head_dim": 4}, "n_groups=8"),
    "another width": (
        {"model_type": "mamba2", "num_heads": 8, "head_dim": 4},
        "num_heads=8 heads of head_dim=4 are not expand=2 times hidden_size=8",
    ),
    "a rank": ({"model_type": "mamba", "time_step_rank": "all"}, "time_step_rank = 'all' is not a positive"),
    "an activation": ({"model_type": "mamba", "hidden_act": "mish"}, "no hidden_act 'mish'"),
    "no width": ({"model_type": "bdh", "n_layer": 2, "vocab_size": 9}, "n_embd is missing"),
}


@pytest.mark.parametrize(("hf", "message"), WRONG_HF.values(), ids=list(WRONG_HF))
def test_configs_that_mean_something_else_are_refused(hf, message):
    with pytest.raises(UserError, match=message):
        config_from_hf({**HF, **hf})


def test_no_limit_is_written_in_two_ways():
    hf = {**HF, "model_type": "mamba2", "num_heads": 2, "head_dim": 8, "n_groups": 1}
    for limit in ([0.0, math.inf], [0.0, {"__float__": "Infinity"}]):
        cfg = config_from_hf({**hf, "time_step_limit": limit})
        assert cfg == config_from_hf(hf)
        assert config_to_hf(cfg)["time_step_limit"] == [0.0, {"__float__": "Infinity"}]


def test_a_model_made_here_is_saved(model, tmp_path):
    save_pretrained(model, tmp_path)
    assert config_from_hf(json.loads((tmp_path / "config.json").read_text())) == model.cfg
    again = load(tmp_path)
    assert again.cfg == model.cfg
    assert same(again, model)


def test_what_a_folder_cannot_say_is_not_written(tmp_path):
    cfg = dataclasses.replace(CONFIGS["bdh"], mixer=Bdh(n_heads=2, n_neurons=10))
    with pytest.raises(UserError, match="2 heads of 10 neurons are no multiple of d_model=8"):
        config_to_hf(cfg)
    with pytest.raises(UserError, match=r"a mamba model has mixer=Mamba\(\.\.\.\), not Mamba2"):
        config_to_hf(dataclasses.replace(CONFIGS["mamba2"], family="mamba"))


def rewritten(case, folder, change):
    """A fixture's folder with other tensors."""
    tensors = {name: np.array(a) for name, a in read_safetensors(FIXTURES / case / "model.safetensors").items()}
    write_safetensors(folder / "model.safetensors", change(tensors), {"format": "pt"})
    (folder / "config.json").write_text((FIXTURES / case / "config.json").read_text())
    return folder


def same(a, b):
    a, b = flatten(a.weights), flatten(b.weights)
    return set(a) == set(b) and all(np.array_equal(a[leaf], b[leaf]) for leaf in a)


def test_names_that_others_use(tmp_path):
    old = {"backbone.embeddings.weight": "backbone.embedding.weight"}
    folder = rewritten("mamba", tmp_path, lambda t: {old.get(n, n): a for n, a in t.items()})
    assert same(load(folder), load(FIXTURES / "mamba"))
    freqs = np.ones((1, 1, 1, 32), np.float32)
    folder = rewritten("bdh", tmp_path, lambda t: {**t, "attn.freqs": freqs})
    assert same(load(folder), load(FIXTURES / "bdh"))


def test_tensors_that_do_not_belong_are_named(tmp_path):
    extra = "backbone.layers.0.mixer.in_proj.bias"
    with pytest.raises(UserError, match=rf"not part of this architecture: {extra}"):
        load(rewritten("mamba", tmp_path, lambda t: {**t, extra: np.zeros(64, np.float32)}))
    lost = "backbone.layers.1.mixer.A_log"
    with pytest.raises(UserError, match=f"missing: {lost}"):
        load(rewritten("mamba2", tmp_path, lambda t: {n: a for n, a in t.items() if n != lost}))


@pytest.mark.parametrize("case", ["mamba", "mamba2", "bdh"])
def test_sharded_over_a_mesh(case):
    mesh = jax.make_mesh((2, 2), ("fsdp", "model"), axis_types=(AxisType.Auto,) * 2)
    plain, placed = load(FIXTURES / case), load(FIXTURES / case, mesh=mesh)
    wide = {"mamba": "blocks.mixer.wx", "mamba2": "blocks.mixer.wx", "bdh": "shared.enc"}[case]
    leaf = flatten(placed.weights)[wide]
    assert {4 * math.prod(s.data.shape) for s in leaf.addressable_shards} == {leaf.size}
    golden = dict(np.load(FIXTURES / case / "expected.npz"))
    inputs = golden["tokens"], golden["mask"]
    expected = by_numpy(plain.apply)(plain.weights, *inputs)
    np.testing.assert_allclose(jax.jit(plain.apply)(placed.weights, *inputs), expected, **ALIKE)


def test_init_starts_time_steps_and_decays_as_the_authors_do():
    for name in ("mamba", "mamba2"):
        cfg = dataclasses.replace(CONFIGS[name], n_layers=50)

        @jax.jit  # what is not asked for is not compiled
        def start(key, cfg=cfg):
            mixer = init(cfg, key)["blocks"]["mixer"]
            return mixer["dt_bias"], mixer["A_log"], mixer["D"]

        dt, decay, skip = map(np.asarray, start(jax.random.key(0)))
        dt = np.log1p(np.exp(dt))
        assert 1e-3 - 1e-6 <= dt.min() < 1.5e-3
        assert 0.07 < dt.max() <= 0.1 + 1e-5
        np.testing.assert_allclose(np.exp(decay), np.broadcast_to(np.arange(1.0, 5), decay.shape), rtol=1e-6)
        np.testing.assert_array_equal(skip, 1)
    half = jax.eval_shape(lambda key: init(cfg, key, jnp.bfloat16), jax.random.key(0))
    assert {a.dtype for a in jax.tree.leaves(half)} == {jnp.dtype(jnp.bfloat16)}


def test_shared_weights_are_there_once():
    table = layout(CONFIGS["bdh"])
    assert {leaf for leaf in table if leaf.startswith("shared.")} == {"shared.enc", "shared.enc_v", "shared.dec"}
    assert not any(leaf.startswith("blocks.") for leaf in table)
    assert nest(table)["shared"]["dec"] == ("heads", "neuron", "embed")
