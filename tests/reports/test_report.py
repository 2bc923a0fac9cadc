# SPDX-License-Identifier: Apache-2.0
import copy
import html.parser
import json
import math
import re
import time

import numpy as np
import pytest

from jaxneuro.errors import UserError
from jaxneuro.reports import write_report
from jaxneuro.reports.report import plain, render, script_json

from .conftest import make_study

VOID = {"meta", "input", "br", "hr", "img", "link"}
EVIL = "</script><script>document.title='pwned'</script><img src=x onerror=\"document.title='pwned'\">{{7*7}}<!--"


class Page(html.parser.HTMLParser):
    """What the markup is made of: every element, and whether all are closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.elements, self.open, self.texts = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1] == tag, f"</{tag}> closes <{self.open[-1]}>"
        self.open.pop()

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.elements if name == tag]


@pytest.fixture(scope="module")
def text(page) -> str:
    return page.read_text(encoding="utf-8")


def test_the_markup_is_well_formed(text):
    parsed = Page(text)
    assert parsed.open == []
    ids = [a["id"] for _, a in parsed.elements if "id" in a]
    assert len(ids) == len(set(ids))
    for attrs in parsed.all("section"):
        assert "aria-labelledby" not in attrs or attrs["aria-labelledby"] in ids


def test_the_file_names_no_address_at_all(text):
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text)
    parsed = Page(text)
    assert not [t for t, _ in parsed.elements if t in ("link", "img", "iframe", "object", "embed", "base", "form")]
    assert not [a for _, a in parsed.elements if "src" in a]
    assert all(a["href"].startswith("#") for a in parsed.all("a") if "href" in a)
    policy = next(a["content"] for a in parsed.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; script-src 'sha256-")


def test_every_figure_has_a_name_and_every_control_a_label(text):
    parsed = Page(text)
    figures = parsed.all("svg")
    assert len(figures) > 20
    assert all(a["role"] == "img" for a in figures)
    assert text.count("<svg") == len(re.findall(r"<svg[^>]*><title>[^<]+</title>", text))
    assert len(parsed.all("input")) + len(parsed.all("select")) == len(parsed.all("label"))
    assert [t for t, _ in parsed.elements if re.fullmatch("h[1-6]", t)][:2] == ["h1", "h2"]
    assert all(a.get("scope") for a in parsed.all("th"))


def test_the_data_of_the_page_is_json(text, study):
    (raw,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    data = json.loads(raw, parse_constant=lambda c: pytest.fail(f"{c} in the page"))
    assert len(data["neurons"]) == len(study["neurons"])
    assert len(data["latents"]) == len(study["dictionary"]["latents"])


def test_what_was_run_and_found_is_on_the_page(text, study):
    for shown in (study["title"], "blocks.*.mlp.post", "Special tokens are left out", "max_tokens_per_group", "0.11.2",
                  "nats per token", "explains 87% of the variance", "CE recovered, mean baseline"):  # fmt: skip
        assert shown in text


@pytest.mark.parametrize("missing", ["counts", "profile", "effect", "neurons", "dictionary"])
def test_an_absent_part_is_named_as_absent(study, missing):
    without = {k: v for k, v in study.items() if k != missing}
    words = {
        "counts": "No neuron counts", "profile": "No per-layer profile", "effect": "No intervention",
        "neurons": "No neurons in", "dictionary": "No dictionary in",
    }  # fmt: skip
    page = render(without)
    assert [w for w in words.values() if w in page] == [words[missing]]
    Page(page)


def test_the_smallest_study_is_a_page():
    page = render({"title": "t", "run": {}, "groups": []})
    assert page.count('class="absent"') >= 8
    assert Page(page).open == []


def everywhere(value, evil: str):
    """The same data with `evil` added to every text and every key that is free text."""
    if isinstance(value, str):
        return value + evil
    if isinstance(value, list):
        return [everywhere(v, evil) for v in value]
    if isinstance(value, dict):
        return {k: everywhere(v, evil) for k, v in value.items()}
    return value


@pytest.fixture(scope="module")
def hostile() -> dict:
    data = everywhere(plain(make_study(4, 3)), EVIL)
    for key in ("specific", "related"):
        data["counts"][key] = {g + EVIL: n for g, n in data["counts"][key].items()}
    data["run"]["tokens"] = {EVIL: 3}
    data["run"]["config"][EVIL] = EVIL
    data["dictionary"]["metrics"][EVIL] = EVIL
    data["dictionary"]["curves"][EVIL] = data["dictionary"]["curves"]["fvu"]
    data["neurons"][0]["dose"]["curves"][EVIL] = [1.0] * 7
    return data


def test_no_text_of_the_data_becomes_markup(hostile, study):
    page = render(hostile)
    parsed, harmless = Page(page), Page(render(everywhere(plain(make_study(4, 3)), "")))
    assert parsed.open == []
    assert {t for t, _ in parsed.elements} == {t for t, _ in harmless.elements}, "no element that was not there before"
    assert len(parsed.all("script")) == 2
    assert not [a for _, a in parsed.elements if any(k.startswith("on") for k in a)]
    assert "<!--" not in page
    assert "{{7*7}}" in page, "data is data, not a template"


UNSEEN = "\x1b[2J\u202e\u2066\u200f\ufeff\u200b\u2060\u00ad\U000e0041"


def test_what_cannot_be_seen_is_a_picture_everywhere_on_the_page():
    page = render(everywhere(plain(make_study(4, 3)), UNSEEN))
    assert not re.search(
        "[\x00-\x08\x0e-\x1f\u200b\u200f\u2028-\u202e\u2060-\u206f\ufeff\u00ad\U000e0000-\U000e007f]", page
    )
    assert page.count("␛[2J[U+202E]") > 500, "it is seen wherever the text stands"


def test_json_in_a_script_element_cannot_end_it():
    value = {"a": "</ScRiPt><!--<script>&\u2028\u2029\ud800"}
    text = script_json(value)
    assert not re.search("[<>&\u2028\u2029\ud800]", text)
    assert json.loads(text) == value


def test_numbers_that_are_none_never_break_the_page(study):
    data = plain(study)
    for bad in (math.nan, math.inf, -math.inf, None):
        worse = holes(data, bad)
        page = render(worse)
        assert Page(page).open == []
        assert not re.search(
            r'[="( ,\[:](NaN|nan|inf|-?Infinity)[",)\] ]', re.sub(r"<script>.*?</script>", "", page, flags=re.S)
        )


def holes(value, bad, path=""):
    """Every float replaced, except the seed of sizes."""
    if isinstance(value, dict):
        return {k: holes(v, bad, k) for k, v in value.items()}
    if isinstance(value, list):
        return [holes(v, bad, path) for v in value]
    return bad if isinstance(value, float) or path in ("counts", "matrix", "set_size") else value


def test_arrays_may_be_numpy_or_jax(study):
    import jax.numpy as jnp

    assert plain({"a": np.float32(1.5), 1: (np.arange(2), jnp.asarray([jnp.nan], jnp.float32))}) == {
        "a": 1.5, "1": [[0, 1], [None]],
    }  # fmt: skip
    assert render(plain(study)) == render(study)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"neuron": []}, r"report: no part 'neuron'\. Did you mean 'neurons'\?"),
        ({"title": None}, "'title' is missing"),
        ({"effect": {"unit": "nats"}}, "effect has no matrix"),
        ({"effect": {"matrix": [[1.0] * 9] * 8}}, r"effect.matrix has shape \[8, 9\] but should have \[9, 9\]"),
        ({"effect": {"matrix": [[1.0] * 9] * 9, "base": [1.0]}}, r"effect.base has shape \[1\] but should have \[9\]"),
        (
            {"profile": {"specific": [[1, 2]] * 9, "agnostic": [1]}},
            r"agnostic has shape \[1\] .*profile.specific has 2",
        ),
        ({"profile": {"specific": [[1, 2]] * 8 + [[1]]}}, "profile.specific has rows of different lengths"),
        ({"neurons": [{"rate": [0.1]}]}, r"neurons\[0\].rate has 1 rows for 9 groups"),
        (
            {"neurons": [{"examples": [{"tokens": ["a"], "values": []}]}]},
            r"neurons\[0\].examples\[0\] has 1 tokens and 0",
        ),
        ({"dictionary": {"latents": [{"rate": []}]}}, r"dictionary.latents\[0\].rate has 0 rows"),
    ],
)
def test_wrong_data_is_named_and_nothing_is_written(study, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        write_report({**study, **change}, tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_all_problems_are_said_at_once(study):
    with pytest.raises(UserError, match=r"neurons\[0\].*; neurons\[1\]"):
        render({**study, "neurons": [{"rate": [1.0]}, {"rate": [2.0]}]})


def test_the_caller_keeps_the_data(study):
    before = copy.deepcopy(study)
    render(study)
    np.testing.assert_equal(study, before)


def test_the_path_comes_back_and_folders_are_made(tmp_path):
    path = write_report({"title": "t", "run": {}, "groups": ["ü"]}, str(tmp_path / "new" / "r.html"))
    assert path == tmp_path / "new" / "r.html"
    assert "ü" in path.read_text(encoding="utf-8")


def test_a_large_study_is_a_small_file_and_quick():
    data, start = make_study(200, 100), time.process_time()
    page = render(data)
    assert len(page.encode()) < 3_000_000
    assert time.process_time() - start < 20


def test_without_chosen_neurons_one_sentence_stands_for_the_figures(study):
    k = len(study["groups"])
    nothing = study["effect"] | {"set_size": [0] * k, "matrix": np.zeros((k, k))}
    page = render(study | {"effect": nothing, "neurons": []})
    assert page.count("No group has neurons that were chosen") == 2, "in the effects and among the cards"
    assert "give more and larger group texts" in page
    assert "Colour scale" not in page
    assert "No neurons in" not in page
    assert "that were chosen" not in render(study | {"effect": nothing | {"set_size": [0] * (k - 1) + [1]}})
