"""What is measured, and what it costs."""

import tiny
from vdiff_jax.stages.evaluate.candidates import Candidate, candidates, of_row


def test_guidance_costs_the_base_alone_a_second_evaluation():
    for model, sampler, w, evaluations in (
        ("base", "ddim", None, 8),
        ("base", "ddim", 0.0, 8),
        ("base", "ddim", 1.0, 16),
        ("base", "heun", 1.0, 30),
        ("distilled", "ddim", 1.0, 8),
        ("guided", "ddim", 1.0, 8),
    ):
        found = Candidate(model, sampler, 8, w)
        assert found.evaluations == evaluations
        # Where it costs nothing, nothing is asked.
        assert (found.asked_w is None) == (w is None or (model, w) == ("base", 0.0))


def test_every_candidate_has_a_name_of_its_own_and_is_found_in_its_row():
    config = tiny.config("evaluate", model={**tiny.TINY["model"], "num_classes": 10})
    config.guide.steps = 1
    config.evaluate.update({"w": (0.0, 0.5, 4.0), "steps": (1, 2)})
    found = candidates(config, ["deterministic", "stochastic"])
    assert len({str(one) for one in found}) == len(found)
    assert [of_row(one._asdict()) for one in found] == found
    assert {one.w for one in found} == {0.0, 0.5, 4.0}
    ladders = {one.ladder for one in found if one.model == "distilled"}
    assert ladders == {"deterministic", "stochastic"}
