# SPDX-License-Identifier: Apache-2.0
"""The report in a real browser: what a reader sees and can do."""

import json

import pytest

from jaxneuro.reports import write_report
from jaxneuro.reports.report import plain

from .browser import Browser
from .conftest import GROUPS
from .test_report import EVIL, hostile  # noqa: F401

SIZES = """return [...document.querySelectorAll(arguments[0])].map(e => e.getBoundingClientRect())
  .map(b => [b.width, b.height])"""
CARDS = "return [...document.querySelectorAll(arguments[0] + ' .card')].map(c => c.id)"
COUNT = "return document.querySelector(arguments[0] + ' [data-role=count]').textContent"


def cards(chromium: Browser, section: str = "#neurons") -> list[str]:
    return chromium.run(CARDS, section)


def choose(chromium: Browser, section: str, role: str, value: str) -> None:
    chromium.run(
        "const s = document.querySelector(`${arguments[0]} [data-role=${arguments[1]}]`); s.value = arguments[2];"
        "if (s.value !== arguments[2]) throw Error('no such option'); s.dispatchEvent(new Event('input'))",
        section, role, value,
    )  # fmt: skip


def search(chromium: Browser, words: str, section: str = "#neurons") -> list[str]:
    choose(chromium, section, "query", "")
    chromium.type(f"{section} [data-role=query]", words)
    return cards(chromium, section)


def name(neuron: dict) -> str:
    return f"L{neuron['layer']}N{neuron['neuron']}"


def test_it_opens_without_a_word_in_the_console_and_loads_nothing(chromium, page):
    chromium.log()
    chromium.open(page)
    assert chromium.log() == []
    assert chromium.run("return performance.getEntriesByType('resource').length") == 0
    assert chromium.run("return document.title") == "jaxneuro study: multilingual-manpages-4m"


def test_heat_maps_and_cards_can_be_seen(chromium, page):
    chromium.open(page)
    cells = chromium.run(SIZES, "#effect svg.heat .cell")
    assert len(cells) == 2 * 81
    assert all(w > 40 and h > 25 for w, h in cells)
    shown = chromium.run(SIZES, "#neurons .card, #dictionary .card")
    assert len(shown) == 12
    assert all(w > 500 and h > 150 for w, h in shown)
    assert all(w > 100 and h > 50 for w, h in chromium.run(SIZES, "main svg.fig:not(.colours)"))


def test_numbers_stay_inside_their_cells_and_names_apart(chromium, page):
    chromium.open(page)
    outside = chromium.run("""
      return [...document.querySelectorAll('svg.heat g')].filter(g => {
        const box = g.querySelector('rect').getBBox();
        return [...g.querySelectorAll('text')].some(t => {
          const b = t.getBBox();
          return b.x < box.x || b.x + b.width > box.x + box.width || b.y + b.height > box.y + box.height + 2;
        });
      }).map(g => g.textContent)""")
    assert outside == []
    overlaps = chromium.run("""
      const hit = (a, b) => a.left < b.right - 1 && b.left < a.right - 1 &&
        a.top < b.bottom - 3 && b.top < a.bottom - 3;
      return [...document.querySelectorAll('main svg.fig')].flatMap(svg => {
        const texts = [...svg.querySelectorAll('text')].filter(t => t.textContent);
        const boxes = texts.map(t => t.getBoundingClientRect());
        return texts.flatMap((t, i) => texts.slice(0, i).filter((_, j) => hit(boxes[i], boxes[j]))
          .map(u => `${svg.querySelector('title').textContent}: ${t.textContent} on ${u.textContent}`));
      })""")
    assert overlaps == []


def test_search_finds_words_split_over_tokens_ids_and_groups(chromium, page, study):
    chromium.open(page)
    everything = chromium.run(COUNT, "#neurons")
    assert everything == "40 of 40 neurons, the first 6 shown"
    wanted = [name(n) for n in study["neurons"] if "de" in [e["group"] for e in n["examples"]]]
    assert len(wanted) > 6
    assert search(chromium, "AUSGEGEBEN") == wanted[:6], "the tokens are 'aus' and 'gegeben'"
    assert search(chromium, name(study["neurons"][5]).lower()) == [name(study["neurons"][5])]
    assert search(chromium, f"layer 2 neuron {study['neurons'][8]['neuron']}") == [name(study["neurons"][8])]
    both = search(chromium, "ausgegeben agnostic")
    assert both == [name(n) for n in study["neurons"] if n["class"] == "agnostic"][:6]
    assert search(chromium, "nowhere-to-be-found") == []
    assert chromium.run(COUNT, "#neurons").startswith("No neuron matches")
    assert len(search(chromium, "layer")) == 6, "and back again"


def test_filters_and_order(chromium, page, study):
    chromium.open(page)
    neurons = study["neurons"]
    choose(chromium, "#neurons", "group", "fr")
    choose(chromium, "#neurons", "class", "specific")
    assert cards(chromium) == [name(n) for n in neurons if n["class"] == "specific" and "fr" in n["groups"]]
    choose(chromium, "#neurons", "group", "")
    choose(chromium, "#neurons", "class", "")
    choose(chromium, "#neurons", "sort", "lape")
    assert cards(chromium) == [name(n) for n in sorted(neurons, key=lambda n: n["lape"])][:6]
    choose(chromium, "#neurons", "sort", "-ap")
    best = sorted((n for n in neurons if n["ap"] is not None), key=lambda n: -n["ap"])
    assert cards(chromium) == [name(n) for n in best][:6]
    choose(chromium, "#dictionary", "group", "it")
    wanted = [f"F{f['latent']}" for f in study["dictionary"]["latents"] if f["group"] == "it"]
    assert cards(chromium, "#dictionary") == wanted
    assert len(cards(chromium)) == 6, "one list does not filter the other"


def test_more_cards_on_demand_and_the_keyboard_goes_on_there(chromium, page):
    chromium.open(page)
    before = cards(chromium)
    chromium.click("#neurons .more")
    after = cards(chromium)
    assert (len(before), len(after)) == (6, 12)
    assert chromium.run("return document.activeElement.id") == after[6]
    for _ in range(5):
        chromium.click("#neurons .more")
    assert len(cards(chromium)) == 40
    assert chromium.run("return document.querySelector('#neurons .more').hidden")


def test_tokens_carry_their_values_and_the_peak_is_marked(chromium, page, study):
    chromium.open(page)
    example = study["neurons"][1]["examples"][0]
    line = f"#{name(study['neurons'][1])} .tokens"
    tokens = chromium.run(
        "return [...document.querySelector(arguments[0]).children].map(e => [e.textContent, e.title])", line
    )
    assert [t for t, _ in tokens] == example["tokens"]
    peak = chromium.run("return [...document.querySelectorAll(arguments[0] + ' .peak')].map(e => e.title)", line)
    assert f"{example['tokens'][example['peak']]}: {float(f'{max(example["values"]):.3g}')}" == peak[0]
    after = "return getComputedStyle(document.querySelector(arguments[0] + ' .peak'), '::after').content"
    assert chromium.run(after, line) == "none"
    chromium.click("#neurons [data-role=values]")
    assert chromium.run(after, line) == f'"{max(example["values"]):.3g}"'


def test_a_link_leads_to_its_card_wherever_it_is(chromium, page, study):
    last = name(study["neurons"][-1])
    chromium.open(page, fragment=f"#{last}")
    assert chromium.run("return document.activeElement.id") == last
    assert 0 <= chromium.run("return document.activeElement.getBoundingClientRect().top") < 400


def test_documents_with_scripts_in_them_stay_text(chromium, hostile, tmp_path):  # noqa: F811
    chromium.log()
    chromium.open(write_report(hostile, tmp_path / "hostile.html"))
    assert chromium.log() == []
    assert chromium.run("return document.title") == hostile["title"]
    assert EVIL in hostile["title"]
    assert chromium.run("return document.images.length + document.querySelectorAll('[onerror]').length") == 0
    assert chromium.run("return document.scripts.length") == 2
    chromium.click("#neurons [data-role=values]")
    assert len(search(chromium, "pwned")) == 4
    token = chromium.run("return document.querySelector('.tokens .tok').textContent")
    assert token == "def" + EVIL, "shown as it was written"
    assert chromium.log() == []


def test_a_script_that_slipped_in_would_not_run(chromium, page):
    chromium.open(page)
    chromium.run("""
      const s = document.createElement('script'); s.textContent = "document.title = 'pwned'"; document.body.append(s);
      document.body.insertAdjacentHTML('beforeend', '<img src="data:," onerror="document.title = 1">');""")
    assert chromium.run("return document.title").startswith("jaxneuro study")
    assert any("Content Security Policy" in line for line in chromium.log())


@pytest.mark.parametrize("dark", [False, True])
def test_light_and_dark_are_both_readable(chromium, page, dark):
    chromium.open(page, dark=dark)
    pairs = {
        "body": "body", ".claim": ".findings li", "figcaption": "body", ".absent": "body", ".tok": ".card",
        ".tok.peak": ".tok.peak",
        ".tag.kind": ".tag.kind", ".words span": ".card", "summary": "body", "svg.lines .dim": "body",
    }  # fmt: skip
    for text, ground in pairs.items():
        if (found := contrast(chromium, text, ground)) is not None:
            assert found >= 4.5, (text, found)
    inks = chromium.run("""
      return [...document.querySelectorAll('svg.heat g')].filter(g => g.querySelector('.cell')).map(g =>
        [getComputedStyle(g.querySelector('.cell')).fill, getComputedStyle(g.querySelector('text')).fill])""")
    assert len(inks) == 162
    worst = min(ratio(*(colour(chromium, c) for c in pair)) for pair in {tuple(p) for p in inks})
    assert worst >= 4.4, "the style sheet's colours, not only the fallback ones"


def colour(chromium: Browser, css: str) -> list[int]:
    """Any CSS colour as 8-bit sRGB, over the page's panel if it is translucent: the browser paints it."""
    return chromium.run(
        """const c = document.createElement('canvas').getContext('2d'); c.canvas.width = c.canvas.height = 1;
        const e = document.createElement('i'); e.style.color = 'var(--panel)'; document.body.append(e);
        for (const f of [getComputedStyle(e).color, arguments[0]]) { c.fillStyle = f; c.fillRect(0, 0, 1, 1); }
        e.remove(); return [...c.getImageData(0, 0, 1, 1).data].slice(0, 3)""",
        css,
    )


def ratio(a: list[int], b: list[int]) -> float:
    from jaxneuro.reports.palette import contrast as wcag

    return wcag(*("#" + "".join(f"{v:02x}" for v in c) for c in (a, b)))


def contrast(chromium: Browser, text: str, ground: str) -> float | None:
    pair = chromium.run(
        """const t = document.querySelector(arguments[0]), g = document.querySelector(arguments[1]);
        if (!t || !g) return null; const s = getComputedStyle(t);
        return [t instanceof SVGElement ? s.fill : s.color, getComputedStyle(g).backgroundColor]""",
        text, ground,
    )  # fmt: skip
    return pair and ratio(*(colour(chromium, c) for c in pair))


def test_the_theme_button_overrides_the_system(chromium, page):
    ground = "return getComputedStyle(document.body).backgroundColor"
    chromium.open(page)
    light = chromium.run(ground)
    chromium.click("#theme")
    assert chromium.run(ground) == light, "system is light, then light is chosen"
    chromium.click("#theme")
    assert chromium.run(ground) != light
    assert chromium.run("return document.getElementById('theme').textContent") == "Theme: dark"
    chromium.open(page)
    assert chromium.run(ground) != light, "remembered"
    chromium.click("#theme")
    assert chromium.run(ground) == light, "system again"


@pytest.mark.parametrize("width", [360, 700, 1600])
def test_nothing_sticks_out_at_any_width(chromium, page, width):
    chromium.open(page, width=width, height=800)
    assert chromium.run("return document.documentElement.scrollWidth <= innerWidth")
    assert chromium.run(
        "return [...document.querySelectorAll('.card *')].every(e => e.getBoundingClientRect().right <= innerWidth)"
    )


@pytest.fixture(scope="module")
def long_names(study, tmp_path_factory):
    """The study with names of 200 and of 60 characters, one of them wide."""
    text = json.dumps(plain(study))
    for short, long in {
        "code": "c" * 200,
        "de": "新聞の記事を集めたフォルダ" * 5,
        "fr": "a name of many words " * 3,
    }.items():
        text = text.replace(json.dumps(short), json.dumps(long))
    return write_report(json.loads(text), tmp_path_factory.mktemp("long") / "report.html")


@pytest.mark.parametrize("width", [390, 1100])
def test_long_names_neither_stick_out_nor_squeeze_values(chromium, long_names, width):
    chromium.open(long_names, width=width, height=800)
    assert chromium.run("return document.documentElement.scrollWidth <= innerWidth")
    script = "return [...document.querySelectorAll('.peak-value ' + arguments[0])].map(e => [e.offsetHeight, e.title])"
    values, names = chromium.run(script, "span"), chromium.run(script, "b")
    assert len(values) == len(names) > 10
    assert max(h for h, _ in values + names) < 30, "one line each"
    assert "c" * 200 in [title for _, title in names], "the whole name is in the tooltip"
    cut = "return [...document.querySelectorAll('.peak-value b')].some(e => e.scrollWidth > e.clientWidth)"
    assert chromium.run(cut), "an ellipsis"


def test_a_short_name_takes_no_more_room_than_it_needs(chromium, page):
    chromium.open(page, width=1100, height=800)
    widths = chromium.run("return [...document.querySelectorAll('.example')].map(e => e.firstChild.offsetWidth)")
    assert max(widths) < 120
    cut = "return [...document.querySelectorAll('.peak-value b')].some(e => e.scrollWidth > e.clientWidth)"
    assert not chromium.run(cut)


def test_an_empty_study_opens_too(chromium, tmp_path):
    chromium.log()
    chromium.open(write_report({"title": "t", "run": {}, "groups": GROUPS}, tmp_path / "r.html"))
    assert chromium.log() == []
    assert chromium.run("return document.querySelectorAll('.absent').length") >= 8
    assert chromium.run("return document.querySelectorAll('.card, template').length") == 0


def test_on_paper_the_settings_are_open_and_the_controls_gone(chromium, page):
    chromium.open(page, dark=True)
    chromium.devtools("Emulation.setEmulatedMedia", media="print")
    try:
        assert chromium.run("return getComputedStyle(document.querySelector('.controls')).display") == "none"
        assert chromium.run(SIZES, "#run details table")[0][1] > 50
    finally:
        chromium.devtools("Emulation.setEmulatedMedia", media="")
