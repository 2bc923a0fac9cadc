# SPDX-License-Identifier: Apache-2.0
"""Lines for a file, a bar for a terminal."""

import io

from jaxneuro.activations import rich_progress
from jaxneuro.activations.progress import Pace, _lines
from jaxneuro.console import quietly


def test_lines_say_how_far_how_fast_and_how_long():
    out, now = io.StringIO(), 0.0
    show = _lines("learn", out, 10.0, lambda: now)
    for done, now in ((0, 0.0), (20, 5.0), (100, 15.0), (180, 25.0), (400, 40.0)):  # noqa: B007 (read by the clock)
        show(done, 400, "loss 0.5")
    assert out.getvalue().splitlines() == [
        "learn 100/400 loss 0.5",  # one interval may hold another compilation
        "learn 180/400 28 s left loss 0.5",
        "learn 400/400 loss 0.5",
    ]


def test_time_left_knows_a_compilation_from_a_step():
    now = 0.0
    pace = Pace(lambda: now)
    assert pace.left(0, 128) == ""
    for done, seconds in ((1, 20.0), (2, 9.0)):  # two programs are compiled, one after the other
        now += seconds
        assert pace.left(done, 128) == "", "nothing is said of what is not known"
    now += 0.5
    assert pace.left(3, 128) == "1 min 02 s left", "125 steps of half a second, whatever compiling took"
    now += 0.5
    assert pace.left(4, 128) == "1 min 02 s left", "124 steps of half a second, whatever compiling took"


def test_the_end_is_printed_once():
    out = io.StringIO()
    with rich_progress("statistics", file=out, every_s=0) as progress:
        progress(15, 15, "done")
        progress(15, 15, "done")
    assert out.getvalue() == "statistics 15/15 done\n"


def test_quiet_is_silent():
    out = io.StringIO()
    with quietly(), rich_progress("read", file=out, every_s=0) as progress:
        progress(1, 1, "")
    assert out.getvalue() == ""


def test_an_unknown_total_and_no_terminal():
    out = io.StringIO()
    with rich_progress("read", file=out, every_s=0) as progress:
        progress(3, None, "")
    assert out.getvalue() == "read 3\n"


def test_a_terminal_gets_a_bar():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    out = Terminal()
    with rich_progress("learn", file=out) as progress:
        progress(1, 4, "loss [0.5]")
        progress(4, 4, "loss [0.25]")
    assert "learn" in out.getvalue()
    assert "4/4" in out.getvalue()
    assert "loss [0.25]" in out.getvalue()  # not taken for markup
