# SPDX-License-Identifier: Apache-2.0
"""JSON and YAML files with one value, key or name changed, in ways a file on the Hub may be."""

import json
import random
from collections.abc import Callable, Iterator
from typing import Any, Final

ANSI: Final = "\x1b[2J\x1b]0;owned\x07\nOK, all good\u202e\ufeff"
"""Clears a terminal, sets its title, forges a line, turns the writing round."""
NONSENSE: Final = "nonsense"
"""No reader may take it for a value, unless it does not read the key."""
OTHER: Final = "other text"
"""Where text is expected: legal where text is data."""
LIES: Final = "lies"
"""Parts of a file contradict each other: refused, whatever it is for."""
LEGAL: Final = "legal"
"""Another file that somebody may have meant."""

type Slot = tuple[Any, Any]
"""(container, key)."""

_RAW: Final = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf"), "10^400": 10**400}
_WRONG: Final[dict[type, tuple[Any, ...]]] = {
    bool: ("true", "false", "no", "", 0, 1, 0.5, 2, [], [True], {}, {"a": 1}, *_RAW.values()),
    int: ("8", "", True, False, 2.5, -7, [], [3], {}, {"a": 1}, *_RAW.values(), 2**63, -(2**31)),
    float: ("1e-6", "", True, [], [0.5], {}, {"a": 1}, *_RAW.values(), -1.0, 1e300),
    str: (3, 0.5, True, [], ["relu"], {}, {"a": 1}, f"nonsense{ANSI}", "z" * 100_000, *_RAW.values()),
    list: (3, True, "text", {"a": 1}, *_RAW.values(), [[["a"]]], [None], [{"a": []}]),
    dict: (3, True, "text", ["a"], *_RAW.values()),
    type(None): ([], {"a": 1}, f"nonsense{ANSI}", *_RAW.values()),
}
_HUGE: Final = (30_000_000, 2**31, 2**63, 10**400, -1, 10**9)
_VAST: Final = ("rope_theta", "rotary_emb_base", "rope_local_base_freq", "global_rope_theta", "local_rope_theta")
"""Bases of rotary frequencies: 10^11 is published (Falcon-H1), so of the above only those beyond it are nonsense."""


def slots(value: Any) -> Iterator[Slot]:
    """Every place in a JSON value."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield value, key
        yield from slots(inner)


def _retyped(rng: random.Random, at: Slot) -> tuple[str, str]:
    old = at[0][at[1]]
    kind = float if isinstance(old, dict) and "__float__" in old else type(old)  # as transformers 5 writes infinity
    at[0][at[1]] = new = rng.choice(_WRONG[kind])
    return f"{old!r:.60} becomes {new!r:.60}", OTHER if isinstance(new, str) and isinstance(old, str) else NONSENSE


def _huge(rng: random.Random, at: Slot) -> tuple[str, str]:
    at[0][at[1]] = new = rng.choice(_HUGE)
    return f"becomes {new!r:.40}", LEGAL if at[1] in _VAST and 0 < new < 10**11 else NONSENSE


def _nudged(rng: random.Random, at: Slot) -> tuple[str, str]:
    old = at[0][at[1]]
    new = {
        bool: lambda: not old,
        int: lambda: old + rng.choice((-1, 1, 7)),
        float: lambda: old * 2,
        str: lambda: old[::-1],
        list: lambda: old[:-1] if rng.random() < 0.5 else old + old,
        dict: dict,
    }.get(type(old), lambda: 1)()
    at[0][at[1]] = new
    return f"{old!r:.60} becomes {new!r:.60}", LEGAL


def _nulled(rng: random.Random, at: Slot) -> tuple[str, str]:
    old = at[0][at[1]]
    at[0][at[1]] = None
    return f"{old!r:.60} becomes null", NONSENSE if isinstance(old, bool) else LEGAL


def _removed(rng: random.Random, at: Slot) -> tuple[str, str]:
    del at[0][at[1]]
    return "is left out", LEGAL


def _deep(rng: random.Random, at: Slot) -> tuple[str, str]:
    depth = rng.choice((70, 900, 5_000, 60_000))
    at[0][at[1]] = f"\0deep{depth}"  # json.dumps cannot write it either: filled in as text
    return f"is nested {depth} deep", NONSENSE


def _extra(rng: random.Random, at: Slot) -> tuple[str, str]:
    if isinstance(at[0], dict):
        name = rng.choice((f"more{ANSI}", "x" * 100_000, "__metadata__", "", "surplus"))
        at[0][name] = rng.choice((1, ANSI, [], {}, None, True))
        return f"{name!r:.30} is beside", LEGAL
    return _removed(rng, at)


CHANGES: Final[tuple[tuple[int, Callable[[random.Random, Slot], tuple[str, str]]], ...]] = (
    (10, _retyped),
    (3, _nudged),
    (2, _huge),
    (2, _nulled),
    (2, _removed),
    (1, _deep),
    (1, _extra),
)


def change(rng: random.Random, value: Any) -> tuple[Any, str, str]:
    """(the value with one change, what, whether that is legal)."""
    if rng.random() < 0.04:
        return rng.choice(([], 3, None, "text", [value], f"\0deep{rng.choice((70, 5_000))}")), "the whole", NONSENSE
    places = list(slots(value))
    if not places:
        return {"a": 1}, "the whole", LEGAL
    at = rng.choice(places)
    weights, changes = zip(*CHANGES, strict=True)
    what, means = rng.choices(changes, weights)[0](rng, at)
    without_end = isinstance(value, dict) and at[0] is value.get("time_step_limit") and at[1] == 1
    return value, f"{at[1]!r:.40} {what}", LEGAL if without_end and at[0][1:] == [float("inf")] else means


def dumped(value: Any) -> str:
    """JSON, with the nests that `json.dumps` cannot write."""
    text = json.dumps(value, indent=1)
    for depth in (70, 900, 5_000, 60_000):
        text = text.replace(json.dumps(f"\0deep{depth}"), "[" * depth + "]" * depth)
    return text


def json_file(rng: random.Random, content: bytes) -> tuple[bytes, str, str]:
    """One JSON file changed."""
    value = json.loads(content)
    if rng.random() < 0.06 and isinstance(value, dict) and value:
        key = rng.choice(list(value))
        other = rng.choice((value[key], "nonsense", 3, None, True, {"a": 1}))
        text = f"{dumped(value).rstrip()[:-1].rstrip()}, {json.dumps(key)}: {json.dumps(other)}}}"
        return text.encode(), f"{key!r} occurs twice", NONSENSE
    value, what, means = change(rng, value)
    return dumped(value).encode("utf-8", "surrogatepass"), what, means


_YAML: Final = (
    *("3", "true", "[]", "{a: 1}", ".nan", "~", "[" * 3_000, "1" + "0" * 400, f"'{'x' * 100_000}'"),
    *(json.dumps(ANSI), "!!python/object/apply:os.system [echo]", "&a [*a]"),
)


def yaml_file(rng: random.Random, content: bytes) -> tuple[bytes, str, str]:
    """One line of a plain YAML file changed."""
    lines = content.decode().splitlines()
    at = rng.randrange(len(lines))
    key, _, old = lines[at].partition(":")
    new = rng.choice(_YAML)
    lines[at] = f"{key}: {new}"
    return "\n".join(lines).encode(), f"{key}:{old:.30} becomes {new:.30}", NONSENSE


def json_lines(rng: random.Random, content: bytes) -> tuple[bytes, str, str]:
    """One record of a .jsonl changed."""
    lines = content.split(b"\n")
    at = rng.randrange(len(lines))
    lines[at], what, _ = json_file(rng, lines[at])
    lines[at] = lines[at].replace(b"\n", b"")
    return b"\n".join(lines), f"line {at + 1}: {what}", LEGAL
