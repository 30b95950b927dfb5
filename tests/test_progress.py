"""The progress of long work: whole lines in a file, one each half minute."""

import io
import sys

import pytest

from vdiff_jax.progress import Bar, say


class _Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def _stderr(monkeypatch, *, terminal=False):
    """A stderr of one's own."""
    stderr = io.StringIO()
    stderr.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", stderr)
    return stderr


def test_a_file_gets_a_line_each_half_minute_and_one_at_the_end(monkeypatch):
    file = _stderr(monkeypatch)
    clock = _Clock()
    with Bar("draw", 12_000, clock=clock) as bar:
        for _ in range(120):  # two minutes, of 100 images a second
            clock.now += 1.0
            bar.update(100)
    assert file.getvalue() == (
        "draw: 3,000 / 12,000 images, 100 images/s, 01:30 left\n"
        "draw: 6,000 / 12,000 images, 100 images/s, 01:00 left\n"
        "draw: 9,000 / 12,000 images, 100 images/s, 00:30 left\n"
        "draw: 12,000 / 12,000 images, 100 images/s, in 02:00\n"
    )


def test_the_rate_is_of_what_was_done_since_the_line_before(monkeypatch):
    file = _stderr(monkeypatch)
    clock = _Clock()
    bar = Bar("draw", 100, unit="batches", done=40, clock=clock)
    bar.note({"loss": "0.5"})
    for seconds, units in ((30, 15), (60, 15)):
        clock.now += seconds
        bar.update(units)
    clock.now += 10
    bar.close()
    assert file.getvalue().splitlines() == [
        "draw: 55 / 100 batches, 0.5 batches/s, 01:30 left, loss 0.5",
        "draw: 70 / 100 batches, 0.25 batches/s, 02:00 left, loss 0.5",
        "draw: 70 / 100 batches, 0.3 batches/s, in 01:40, loss 0.5",
    ]


def test_lines_that_are_said_are_whole_lines_too(monkeypatch):
    file = _stderr(monkeypatch)
    clock = _Clock()
    with Bar("draw", 10, clock=clock) as bar:
        say("compiled", sys.stderr)
        clock.now += 40
        bar.update(5)
        say("half", sys.stderr)
    text = file.getvalue()
    assert "\r" not in text
    assert [line.split(":")[0] for line in text.splitlines()] == [
        "compiled", "draw", "half", "draw",
    ]  # fmt: skip


def test_an_error_is_no_reason_to_leave_out_the_last_line(monkeypatch):
    file = _stderr(monkeypatch)
    with pytest.raises(KeyboardInterrupt), Bar("draw", 10) as bar:  # noqa: PT012
        bar.update(5)
        raise KeyboardInterrupt
    assert file.getvalue().startswith("draw: 5 / 10 images")


def test_what_is_short_or_not_to_be_shown_writes_nothing(monkeypatch):
    file = _stderr(monkeypatch)
    clock = _Clock()
    with Bar("draw", 10, delay=2.0, clock=clock) as bar:
        clock.now += 1
        bar.update(10)
    with Bar("draw", 10, shown=False, clock=clock) as bar:
        clock.now += 60
        bar.update(10)
    assert not file.getvalue()


def test_a_terminal_gets_a_bar(monkeypatch):
    terminal = _stderr(monkeypatch, terminal=True)
    with Bar("draw", 10) as bar:
        bar.note({"loss": "0.5"})
        bar.update(10)
    text = terminal.getvalue()
    assert "\rdraw: 100%|" in text
    assert "loss=0.5" in text
    assert "draw: 10 / 10" not in text
