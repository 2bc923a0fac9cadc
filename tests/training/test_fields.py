# SPDX-License-Identifier: Apache-2.0
"""No silent no-op: every field of every configuration changes the compiled step, the run, or is refused."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneuro.dictionaries import AuxK
from jaxneuro.dictionaries.parts.training import Training
from jaxneuro.errors import UserError
from jaxneuro.training import METHODS, OPTIONS, Array, Devices, Live, Store, TrainConfig, train_dictionary
from jaxneuro.training.config import check
from jaxneuro.training.options import FROM_THE_RUN, TrainingOptions
from jaxneuro.training.run import _mesh
from jaxneuro.training.sources import open_source
from jaxneuro.training.sweep import methods

REFUSED = object()
SELECTS = {"n_latents": 24, "k": 3, "k_start": 5, "k_steps": 7, "auxk": AuxK()}
THRESHOLDS = {
    "n_latents": 24,
    "sparsity": 0.2,
    "target_l0": 3.0,
    "bandwidth": 0.01,
    "threshold_start": 0.01,
    "sparsity_warmup_steps": 5,
}
"""Other values for the fields of some methods."""
BASE = {
    "topk": {"n_latents": 16, "k": 2, "k_start": 4, "k_steps": 5, "auxk": None},
    "batch_topk": {"n_latents": 16, "k": 2, "k_start": 4, "k_steps": 5, "auxk": None},
    "matryoshka": {"n_latents": 16, "k": 2, "k_start": 4, "k_steps": 5, "prefixes": (4, 16), "auxk": None},
    "multi_topk": {"n_latents": 16, "k": 2, "auxk": None},
    "group_max": {"n_latents": 16, "k": 2, "auxk": None},
    "matching_pursuit": {"n_latents": 16, "k": 2},
    "relu": {"n_latents": 16, "l1": 0.1},
    "jumprelu": {"n_latents": 16, "sparsity": 0.1, "target_l0": 2.0},
    "gated": {"n_latents": 16, "l1": 0.1},
    "atoms": {"n_latents": 16, "sparsity": 0.1, "target_l0": 2.0},
    "transcoder": {"n_latents": 16, "k": 2, "k_start": 4, "k_steps": 5, "auxk": None},
    "cross_layer_transcoder": {"n_latents": 16, "n_layers": 2, "sparsity": 0.1},
    "crosscoder": {"n_latents": 16, "k": 2, "k_start": 4, "k_steps": 5, "widths": (4, 4), "auxk": None},
    "pca": {"n_latents": 4, "sketch": 6},
    "kmeans": {"n_latents": 4},
    "semi_nmf": {"n_latents": 4},
}
CHANGES = {
    "topk": SELECTS,
    "batch_topk": SELECTS,
    "matryoshka": {**SELECTS, "n_latents": REFUSED, "prefixes": (8, 16), "level_weights": (1.0, 0.5)},
    "multi_topk": {"n_latents": 24, "k": 3, "factor": 3, "weight": 0.5, "auxk": AuxK()},
    "group_max": {"n_latents": 24, "k": 4, "auxk": AuxK()},
    "matching_pursuit": {"n_latents": 24, "k": 3},
    "relu": {"n_latents": 24, "l1": 0.2, "l1_warmup_steps": 5},
    "jumprelu": THRESHOLDS,
    "gated": {"n_latents": 24, "l1": 0.2, "l1_warmup_steps": 5},
    "atoms": {**THRESHOLDS, "shrinkage": 0.1},
    "transcoder": {**SELECTS, "skip": True},
    "cross_layer_transcoder": {
        "n_latents": 24,
        "n_layers": 1,
        "sparsity": 0.2,
        "k": REFUSED,
        "tanh_scale": 2.0,
        "bandwidth": 1.0,
        "threshold_start": 0.2,
        "revive": 1e-3,
        "sparsity_warmup_steps": 5,
    },
    "crosscoder": {**SELECTS, "widths": (3, 5), "rule": "topk"},
    "pca": {"n_latents": 3, "whiten": True, "sketch": 8},
    "kmeans": {"n_latents": 5, "spherical": True, "memory_tokens": 100, "dead_after_tokens": 50},
    "semi_nmf": {
        "n_latents": 5,
        "sparsity": 0.5,
        "decay": 0.5,
        "coefficient_steps": 7,
        "start_steps": 9,
        "guard": "clip",
        "dead_after_tokens": 50,
    },
}
TRAINING = {
    "learning_rate": 0.5,
    "warmup_steps": 3,
    "optimiser": "signum",
    "clip_norm": 0.1,
    "accumulate": 2,
    "dead_after_tokens": 77,
    "normalise": "unit",
    "widths": (4, 4),
    "b_dec_start": "mean",
    "max_norm": 5.0,
    "dtype": "bfloat16",
    "implementation": "no_such_kernel",
}
AUXK = {"weight": 0.5, "k": 3, "cap": 5}
AT_THE_END = (("pca", "n_latents"), ("pca", "whiten"))
"""With a sketch, pca learns the same whatever these say."""
NEEDS_Y = ("transcoder", "cross_layer_transcoder")


def program(config, batch):
    """init and step as traced, every constant in them; what `finish` does is in the one case below."""
    (method,) = methods(config, None).values()
    init, state = jax.make_jaxpr(method.init, return_shape=True)(jax.random.key(0), batch)
    yield str(init)
    yield str(jax.make_jaxpr(method.step)(state, batch))


def differs(parts, others):
    """Whether one of the parts is another; those after the first such are not made."""
    return any(a != b for a, b in zip(parts, others, strict=True))


def rows(name):
    x = jax.ShapeDtypeStruct((64, 8), jnp.float32)
    return {"x": x, "y": x} if name in NEEDS_Y else {"x": x}


def base(name, **more):
    return TrainConfig(source=Array(path="x.npy"), method=OPTIONS[name](**{**BASE[name], **more}), steps=50)


@pytest.fixture(scope="module")
def programs():
    return {name: tuple(program(base(name), rows(name))) for name in METHODS}


def test_the_tables_name_every_field():
    assert CHANGES.keys() == METHODS.keys()
    for name, options in OPTIONS.items():
        assert CHANGES[name].keys() == {f.name for f in dataclasses.fields(options)} - {"training"}
    assert TRAINING.keys() == {f.name for f in dataclasses.fields(TrainingOptions)}
    assert TRAINING.keys() == {f.name for f in dataclasses.fields(Training)} - set(FROM_THE_RUN)
    assert AUXK.keys() == {f.name for f in dataclasses.fields(AuxK)}
    assert OBSERVED.keys() | RUN_FIELDS == {f.name for f in dataclasses.fields(TrainConfig)}
    for kind, changes in SOURCES.items():
        assert changes.keys() == {f.name for f in dataclasses.fields(kind)} - READ_ELSEWHERE


@pytest.mark.parametrize(
    ("name", "field"), [(n, f) for n, fields in CHANGES.items() for f in fields if (n, f) not in AT_THE_END]
)
def test_every_option_of_every_method(programs, name, field):
    value = CHANGES[name][field]
    if value is REFUSED:
        with pytest.raises(UserError):
            tuple(program(base(name, **{field: 24}), rows(name)))
    else:
        assert differs(program(base(name, **{field: value}), rows(name)), programs[name])


@pytest.mark.parametrize(("name", "field"), AT_THE_END)
def test_options_that_finish_reads(name, field):
    batch = {"x": jnp.asarray(np.random.default_rng(0).normal(size=(64, 8)), jnp.float32)}
    codes = []
    for chosen in ({}, {field: CHANGES[name][field]}):
        (method,) = methods(base(name, **chosen), None).values()
        state, _ = method.step(method.init(jax.random.key(0), batch), batch)
        codes.append(np.asarray(method.finish(state)[""].encode(batch["x"])))
    assert codes[0].shape != codes[1].shape or np.abs(codes[0] - codes[1]).max() > 0.01


@pytest.mark.parametrize("field", TRAINING)
def test_every_option_of_training(programs, field):
    training = TrainingOptions(**{field: TRAINING[field]})
    if field == "implementation":
        with pytest.raises((ValueError, NotImplementedError), match="no_such_kernel"):
            tuple(program(base("topk", training=training), rows("topk")))
    else:
        assert differs(program(base("topk", training=training), rows("topk")), programs["topk"])


@pytest.mark.parametrize("name", [n for n, o in OPTIONS.items() if "training" in o.__dataclass_fields__])
def test_training_reaches_every_method(programs, name):
    training = TrainingOptions(dead_after_tokens=77, learning_rate=0.5)
    assert differs(program(base(name, training=training), rows(name)), programs[name])


def test_every_option_of_auxk():
    found = [tuple(program(base("topk", auxk=AuxK(**{f: AUXK[f]} if f else {})), rows("topk"))) for f in (None, *AUXK)]
    assert len(set(found)) == len(found)


def observed(config):
    """What a run does that can be known before it: how long, on what, its batches, judged on what, its programs."""
    check(config)
    mesh, data = _mesh(config), open_source(config)
    first = next(data.stream())
    shapes = {n: jax.ShapeDtypeStruct(a.shape, a.dtype) for n, a in first.items()}
    yield config.updates, data.epoch_tokens, data.extra_steps, data.held_out, str(mesh)
    yield [(n, a.tobytes()) for n, a in first.items()]
    yield [np.asarray(b["x"]).tobytes() for b in data.judged("")] if data.judged else []
    yield from program(config, shapes)


OBSERVED = {
    "method": OPTIONS["relu"](n_latents=24, l1=0.1),
    "steps": 8,
    "batch": 32,
    "seed": 1,
    "decay": False,
    "sweep": {"l1": (0.1, 0.2)},
    "devices": Devices(data=2),
    "evaluate_tokens": 256,
    "source": "xy",
    "tokens": REFUSED,
}
RUN_FIELDS = {"out", "export", "checkpoint_every", "keep", "log_every", "metrics", "nonfinite"}
"""Those that are about files and about what happens then: the tests below."""


@pytest.fixture(scope="module")
def as_it_is(six_steps, tmp_path_factory):
    return tuple(observed(six_steps(out=tmp_path_factory.mktemp("run"))))


@pytest.mark.parametrize("field", OBSERVED)
def test_every_field_of_the_run(config, changed, xy_file, as_it_is, field):
    value = Array(path=xy_file) if field == "source" else OBSERVED[field]
    if value is REFUSED:
        with pytest.raises(UserError, match="give one of them"):
            check(changed(config, tokens=100))
        assert changed(config, steps=None, tokens=100).updates == 2
        return
    assert differs(observed(changed(config, **{field: value})), as_it_is)


def test_the_folder_of_the_run_changes_nothing_else(config, as_it_is):
    assert not differs(observed(config), as_it_is)


def test_files_and_metrics_of_the_run(config, changed):
    """out, export, checkpoint_every, keep and log_every, in two runs."""
    train_dictionary(config)
    again = changed(config, out=config.out.with_name("other"))
    train_dictionary(changed(again, export=("saelens",), checkpoint_every=2, keep=True, log_every=3))
    names = [{str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()} for out in (config.out, again.out)]
    assert "dictionary/saelens/cfg.json" in names[1] - names[0]
    assert {"dictionary/dictionary.json", "config.json", "results.json", "metrics.jsonl"} <= names[0] & names[1]
    assert not any(n.startswith("checkpoints") for n in names[0])
    assert {n.split("/")[1] for n in names[1] if n.startswith("checkpoints/")} >= {"4", "6"}
    lines = [(out / "metrics.jsonl").read_text().splitlines() for out in (config.out, again.out)]
    steps = [[json.loads(line)["step"] for line in found] for found in lines]
    assert steps == [[2, 4, 6], [3, 6]]


@pytest.mark.parametrize(("sink", "package"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_metrics_elsewhere(config, changed, monkeypatch, sink, package):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(UserError, match=f"pip install {package}"):
        train_dictionary(changed(config, metrics=sink))


READ_ELSEWHERE = {"text", "bos"}
"""What a text is made of: tests/data."""
SOURCES = {
    Array: {"path": "xy"},
    Store: {"path": None, "held_out": None},
    Live: {
        "site": ("blocks.1.resid_post",),
        "target": ("blocks.0.mlp_out",),
        "model": "no/such/folder",
        "groups": "no/such/folder",
        "context": 16,
        "max_tokens_per_group": 200,
        "without_ids": (7,),
        "without_positions": (0,),
        "buffer_tokens": 0,
        "dtype": "bfloat16",
    },
}
"""Array is among the fields of the run above; Store has a test of its own in test_sources.py."""


@pytest.fixture(scope="module")
def live():
    source = Live(site=("blocks.0.resid_post",), context=32, max_tokens_per_group=300, buffer_tokens=128)
    return TrainConfig(source=source, method=OPTIONS["relu"](**BASE["relu"]), steps=5, batch=64, evaluate_tokens=0)


def traced(config):
    """The source of a live run and its whole step, the model in it."""
    data = open_source(config)
    method = data.attach(methods(config, None))
    batch = {**next(data.stream()), **data.constants}
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), batch)
    state = jax.eval_shape(method.init, jax.random.key(0), shapes)
    yield data.fingerprint, data.extra_steps
    yield str(jax.make_jaxpr(method.step)(state, shapes))


@pytest.fixture(scope="module")
def live_traced(live):
    return tuple(traced(live))


@pytest.mark.parametrize("field", SOURCES[Live])
def test_every_field_of_a_live_source(live, live_traced, changed, field):
    other = changed(live, **{f"source__{field}": SOURCES[Live][field]})
    if SOURCES[Live][field] == "no/such/folder":
        with pytest.raises(UserError, match="no/such"):
            next(traced(other))
    else:
        assert differs(traced(other), live_traced)


def test_the_seed_reaches_the_buffer_of_a_live_source(live, live_traced, changed):
    assert tuple(traced(changed(live, seed=1)))[-1] != live_traced[-1]
