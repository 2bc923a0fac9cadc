# SPDX-License-Identifier: Apache-2.0
from jaxneuro.reports import coder
from jaxneuro.reports.report import plain, render


def shown(part):
    return coder.dictionary({"groups": [], "dictionary": {"site": "s", "n_latents": 8, "k": 2, **part}})


def test_known_metrics_in_their_order_and_no_other():
    metrics = {"my_score": 1.5, "recovered_values": {"zero": 1.0}, "dead_fraction": 0.25, "l0": 2.0, "cosine": 0.9}
    out = shown({"metrics": metrics, "curves": {"tokens": [1, 2], "my_curve": [1.0, 2.0], "l0": [2.0, 2.0]}})
    assert [(name, value) for name, value, _ in out["facts"]] == [("L0", "2"), ("Never on", "25%")]
    assert [c.title for c in out["curves"]] == ["L0: 2 at the end"]


def test_variance_is_said_once():
    facts = shown({"metrics": {"explained_variance": 0.869, "fvu": 0.131}})["facts"]
    assert [(name, value) for name, value, _ in facts] == [("Explained variance", "87%")]
    assert facts[0][2].endswith("(FVU), is 0.131")
    assert [name for name, *_ in shown({"metrics": {"fvu": 0.131}})["facts"]] == ["FVU"]


def test_what_the_model_loses_is_a_table_of_three_digits():
    ends = {"original": 3.3296597084911674, "reconstructed": 3.51, "zero": 7.25, "mean": 3.2, "other": 1.0}
    table = shown({"recovered": {**ends, "measure": "Cross entropy", "unit": "nats per token"}})["kept"]
    assert table.head == ["The site is", "Cross entropy, nats per token", "More"]
    assert table.rows == [
        ["as it is", "3.33", "–"],
        ["replaced by its reconstruction", "3.51", "+0.18"],
        ["set to its mean", "3.20", "−0.13"],
        ["set to zero", "7.25", "+3.92"],
    ]
    assert shown({})["kept"] is None


def test_another_measure_is_not_called_cross_entropy():
    part = {"metrics": {"ce_recovered_zero": 0.5}, "recovered": {"short": "Embedding shift"}}
    assert [name for name, *_ in shown(part)["facts"]] == ["Embedding shift recovered, zero baseline"]
    assert [name for name, *_ in shown({"metrics": part["metrics"]})["facts"]] == ["CE recovered, zero baseline"]


def test_no_key_that_the_page_does_not_know_reaches_it(study):
    data = plain(study)
    data["dictionary"]["metrics"] |= {"recovered_values": {"original": 3.32, "zero": 7.1}, "raw_key": "raw value"}
    data["dictionary"]["curves"]["raw_curve"] = data["dictionary"]["curves"]["fvu"]
    data["effect"]["raw_key"] = data["counts"]["raw_key"] = "raw value"
    page = render(data)
    assert not [w for w in ("recovered_values", "raw_key", "raw value", "raw_curve", "{&#39;", "{'") if w in page]


def test_training_curves_and_their_last_values(study):
    curves = coder.dictionary(plain(study))["curves"]
    assert [c.title for c in curves] == [
        "FVU: 0.131 at the end",
        "L0: 32 at the end",
        "Dead latents: 0.0246 at the end",
    ]
    assert all(10 <= len(c.table.rows) <= 14 for c in curves)
