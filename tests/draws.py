"""Counts what the evaluate stage draws."""

from vdiff_jax.stages.evaluate import drawing


class Draws:
    """Counts the calls of `draw`, and fails at one of them."""

    def __init__(self, patch, fail_at=0):
        self.calls, draw = 0, drawing.draw

        def counted(*args, **kwargs):
            self.calls += 1
            if self.calls == fail_at:
                raise KeyboardInterrupt
            return draw(*args, **kwargs)

        patch.setattr(drawing, "draw", counted)
