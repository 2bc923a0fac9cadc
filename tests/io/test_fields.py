# SPDX-License-Identifier: Apache-2.0
"""The typed reader of JSON: kinds and ranges, all problems in one message, limits of files."""

import json
import math
import os

import pytest

from jaxneuro.errors import UserError, pictures, shown, unknown
from jaxneuro.io import read_json
from jaxneuro.io.fields import FLAG, MISSING, TEXT, Fields, choice, either, many, null_or, number, whole

NO_FLAGS = (0, 1, 0.5, "true", "no", "", None, [True], {"a": True}, math.nan)
NO_COUNTS = (0, -1, 2.0, True, "3", None, [3], {}, math.nan, math.inf, 2**31, 10**400)
NO_NUMBERS = (0, -1.0, 1e30, True, "1", None, [1.0], {}, math.nan, math.inf, -math.inf, 10**400)


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (FLAG, (True, False), NO_FLAGS),
        (whole(), (1, 7, 2**31 - 1), NO_COUNTS),
        (number(above=0, high=1e9), (1, 0.5, 1e9), NO_NUMBERS),
        (number(low=0, below=1), (0, 0.5), (1, 1.0, -1e-9)),
        (TEXT, ("", "a"), (None, 1, True, ["a"])),
        (choice(["a", "b"]), ("a", "b"), ("c", None, 1, [], {}, ["a"])),
        (many(whole(), least=1), ([1], [1, 2]), ([], [0], [1, "2"], 1, None, "12", {"a": 1})),
        (null_or(whole()), (None, 3), (0, "null", False)),
        (either(whole(), choice(["auto"])), (3, "auto"), (0, "none", None, True)),
    ],
    ids=lambda k: k.wanted if hasattr(k, "wanted") else "",
)
def test_a_kind_takes_its_own_values_and_no_others(kind, good, bad):
    for value in good:
        assert kind.fits(value)
        made = kind.make(value)
        assert (list(made) if isinstance(made, tuple) else made) == value
    for value in bad:
        assert not kind.fits(value), value
    assert kind.fits(kind.instead) or kind is TEXT or kind.instead == ()


def read_all(value, error=None):
    with Fields(value, "cfg.json") as fields:
        fields.read("a", FLAG)
        fields.read("b", FLAG, True)
        fields.read("c", whole())
        inner = fields.group("d")
        inner.read("e", many(whole()))
        inner.read("f", whole())
        fields.read("act", choice(["relu", "gelu"]))
        fields.only("a", "b", "c", "d", "act")
        if error is not None:
            raise error


@pytest.mark.parametrize("error", [None, ZeroDivisionError("of a stand-in")])
def test_all_that_is_wrong_is_one_message(error):
    value = {"a": "true", "b": 1, "d": {"e": [1, None], "f": 0}, "act": "rleu", "x": 3}
    with pytest.raises(UserError) as e:
        read_all(value, error)
    message = str(e.value)
    for part in ("cfg.json: ", "a = 'true'", "b = 1 is not true or false", "c is missing", "d.e = [1, None]"):
        assert part in message
    for part in ("d.f = 0", "no act 'rleu'. Did you mean 'relu'", "no key 'x'"):
        assert part in message
    assert "\n" not in message


def test_a_fault_that_is_not_the_files_stays_what_it_is():
    right = {"a": True, "c": 1, "d": {"e": [], "f": 1}, "act": "relu"}
    read_all(right)
    with pytest.raises(ZeroDivisionError):
        read_all(right, ZeroDivisionError())
    with pytest.raises(KeyboardInterrupt):
        read_all({}, KeyboardInterrupt())


def test_absent_keys_get_their_default_and_present_ones_never():
    with Fields({"a": 0, "n": None}, "f") as fields:
        assert fields.read("a", whole(0), 5) == 0
        assert fields.read("b", whole(0), 5) == 5
        assert fields.read("b", whole(), None) is None
        assert fields.read("n", null_or(whole()), 5) is None
    assert MISSING is not None
    for value in (None, [], "a", 1, True):
        with pytest.raises(UserError, match="not a JSON object"):
            Fields(value, "f")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1, "a": 2}', "the key 'a' occurs twice"),
        ('{"b": {"a": 1, "a": 1}}', "the key 'a' occurs twice"),
        ("[" * 65 + "]" * 65, "more than 64 levels"),
        ("[" * 5000 + "]" * 5000, "more than 64 levels"),
        ('{"a":' * 200_000, "more than 64 levels"),
        ('{"a": 1', "not valid JSON"),
        ("\xff", "not valid JSON"),
        ("1" * 5000, "not valid JSON"),
    ],
)
def test_json_that_is_damaged_or_hostile_is_one_error(tmp_path, text, said):
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=said):
        read_json(tmp_path / "config.json")


def test_json_within_the_limits_is_read(tmp_path):
    deep = json.loads("[" * 64 + "]" * 64)
    (tmp_path / "a.json").write_text(json.dumps(deep))
    assert read_json(tmp_path / "a.json") == deep
    (tmp_path / "a.json").write_text('{"a": NaN, "b": Infinity}')  # as transformers 4 writes Mamba-2's limits
    assert read_json(tmp_path / "a.json")["b"] == math.inf


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    for path, kind in ((tmp_path / "config.json", "a pipe"), ("/dev/zero", "a device"), (tmp_path, "a folder")):
        with pytest.raises(UserError, match=f"it is {kind}, not a file"):
            read_json(path)
    with pytest.raises(UserError, match="No such file"):
        read_json(tmp_path / "none.json")
    with pytest.raises(UserError, match="null byte"):
        read_json(f"{tmp_path}/a\0b")


def test_what_a_file_says_is_shown_safely_and_short():
    assert shown("\x1b[2J\x1b]0;title\x07") == "␛[2J␛]0;title␇"
    assert shown("a\nOK, all good") == "a↵OK, all good"
    for code in (0x202E, 0xFEFF, 0x200B, 0x200D, 0x2066, 0x061C, 0xAD, 0xE0041, 0xD800, 0x85):
        out = shown(f"a{chr(code)}b")
        assert chr(code) not in out
        assert out.isprintable()
    assert pictures("👩\u200d👧") == "👩\u200d👧"  # joiners are part of what is written
    assert len(shown("x" * 1_000_000)) < 120
    assert len(shown(b"x" * 1_000_000)) < 120
    assert len(shown([["x" * 1000] * 1000] * 1000)) < 120
    assert len(shown({str(i): i for i in range(100_000)})) < 120
    assert "bits" in shown(10**5000)
    assert shown(True) == "True"
    twice = ()
    for _ in range(60):
        twice = (twice, twice)
    assert len(shown(twice)) < 120


def test_errors_neutralise_what_they_were_given():
    e = UserError("a\x1b[2J: \u202e" + "x" * 1_000_000 + "\n  - second")
    assert "\x1b" not in str(e)
    assert "\u202e" not in str(e)
    assert len(str(e)) < 21_000
    assert str(UserError("one\n  - two")) == "one\n  - two"
    text = str(unknown("tensor", "y" * 1_000_000, ["\x1b[31m", "z" * 100_000]))
    assert len(text) < 400
    assert "\x1b" not in text
