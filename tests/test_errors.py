# SPDX-License-Identifier: Apache-2.0
import sys
import unicodedata

import pytest

from jaxneuro.errors import pictures, shown

PREFIXES = {*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD}
"""Format characters that are drawn: signs before an Arabic, Syriac or Kaithi number."""
JOINERS = {0x200C, 0x200D}


def test_every_character_without_a_shape_is_seen_and_every_other_stays():
    wrong = []
    for i in range(sys.maxunicode + 1):
        c = chr(i)
        kind = unicodedata.category(c)
        hidden = kind in ("Cc", "Cf", "Cs", "Zl", "Zp") and i not in PREFIXES | JOINERS
        if (pictures(c) != c) != hidden and kind != "Cn" and i not in JOINERS:
            wrong.append(f"U+{i:04X}")
    assert wrong == []


@pytest.mark.parametrize("text", ["می\u200cخواهم", "क्\u200dष", "👩\u200d💻", "❤️\u200d🔥", "naïve ☃ Größe"])
def test_text_that_needs_its_joiners_stays(text):
    assert pictures(text) == text


def test_a_joiner_that_joins_nothing_is_seen():
    assert pictures("pass\u200dword") == "pass[U+200D]word"
    assert pictures("\u200c") == "[U+200C]"


def test_a_name_can_neither_clear_the_terminal_nor_forge_a_line_nor_fill_the_screen():
    name = shown("\x1b[2J\x1b]0;title\x07\nOK, all good")
    assert name == "␛[2J␛]0;title␇↵OK, all good"
    assert name.isprintable()
    assert len(shown("\u202e" * 10**6, 80)) == 80
    assert shown("x" * 80) == "x" * 80
    assert shown("x" * 81) == "x" * 79 + "…"
