# SPDX-License-Identifier: Apache-2.0
"""Every site that a family reaches has a definition, and every definition is of a site that one reaches."""

import re
from pathlib import Path

import pytest

from jaxneuro.models import load
from jaxneuro.taps.definitions import DEFINITIONS, definition
from jaxneuro.taps.names import parse

HERE = Path(__file__).parent
FOLDERS = sorted(p.parent for p in (*HERE.glob("fixtures/*/config.json"), *HERE.glob("convnets/*/config.json")))


@pytest.fixture(scope="module")
def reached():
    """Site -> a folder whose model reaches it."""
    found = {}
    for folder in FOLDERS:
        model = load(folder)
        found |= {s.name: folder.name for s in model.sites()}
    return found


def test_every_site_has_a_definition_and_every_definition_a_site(reached):
    assert {name: folder for name, folder in reached.items() if definition(name) is None} == {}
    bare = {re.sub(r"^stage\d+", "stageN", name.removeprefix("encoder.")) for name in reached}
    assert set(DEFINITIONS) - bare == set()


@pytest.mark.parametrize("name", DEFINITIONS)
def test_a_definition_is_short_and_its_other_name_is_read_as_the_site(name):
    row = DEFINITIONS[name]
    assert 2 <= len(row.what.split()) <= 9
    assert not row.theirs or name == "logits" or parse(row.theirs.replace(".L.", ".3.")).name == name
