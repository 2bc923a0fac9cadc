# SPDX-License-Identifier: Apache-2.0
"""Site strings are read one way."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxneuro.errors import UserError
from jaxneuro.taps.names import parse


@pytest.mark.parametrize(
    ("text", "name", "layers", "single"),
    [
        ("embed", "embed", None, False),
        ("hook_embed", "embed", None, False),
        ("blocks.5.mlp.post", "blocks.mlp.post", (5,), True),
        ("blocks.5.mlp.hook_post", "blocks.mlp.post", (5,), True),
        ("blocks.5.hook_resid_post", "blocks.resid_post", (5,), True),
        ("blocks.0.attn.hook_attn_scores", "blocks.attn.scores", (0,), True),
        ("blocks.2,5.mlp.post", "blocks.mlp.post", (2, 5), False),
        ("blocks.*.mlp.post", "blocks.mlp.post", None, False),
        ("blocks.mlp.post", "blocks.mlp.post", None, False),
        ("blocks.11.mlp.post@grad", "blocks.mlp.post@grad", (11,), True),
        ("encoder.3.out", "encoder.out", (3,), True),
        ("blocks.ln1.scale", "blocks.ln1.scale", None, False),
    ],
)
def test_parse(text, name, layers, single):
    assert parse(text) == (name, layers, single)


def test_base_drops_the_tag():
    assert parse("blocks.1.x@grad").base == "blocks.x"


@pytest.mark.parametrize(("bad", "match"), [("", "named by a string"), (3, "not 3"), ("x@gard", "unknown tag '@gard'")])
def test_parse_refuses(bad, match):
    with pytest.raises(UserError, match=match):
        parse(bad)


@given(st.lists(st.integers(0, 200), min_size=1, max_size=6))
def test_layers_keep_their_order(layers):
    assert parse(f"blocks.{','.join(map(str, layers))}.x").layers == tuple(layers)
