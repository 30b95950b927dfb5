"""What is measured, and what it costs."""

import tiny
from vdiff_jax.distillation.role import BASE, GUIDED, student
from vdiff_jax.evaluation.measurement import Measurement
from vdiff_jax.stages.evaluate.candidates import Candidate, candidate_of, candidates


def test_guidance_costs_the_base_alone_a_second_evaluation():
    for role, sampler, w, evaluations in (
        (BASE, "ddim", None, 8),
        (BASE, "ddim", 0.0, 8),
        (BASE, "ddim", 1.0, 16),
        (BASE, "heun", 1.0, 30),
        (student(8), "ddim", 1.0, 8),
        (GUIDED, "ddim", 1.0, 8),
    ):
        candidate = Candidate(role, sampler, 8, w)
        assert candidate.evaluations == evaluations
        # Where it costs nothing, nothing is asked.
        assert (candidate.asked_w is None) == (w is None or (role, w) == (BASE, 0.0))


def test_every_candidate_has_a_name_of_its_own_and_is_found_in_its_row():
    config = tiny.config("evaluate", model={**tiny.TINY["model"], "num_classes": 10})
    config.guide.steps = 1
    config.evaluate.update({"w": (0.0, 0.5, 4.0), "steps": (1, 2)})
    found = candidates(config, ["progressive", "stochastic"])
    assert len({str(one) for one in found}) == len(found)
    rows = [
        Measurement(**one.to_json(), evaluations=1, metric="fid", value=1.0)
        for one in found
    ]
    assert [candidate_of(row) for row in rows] == found
    assert {one.w for one in found} == {0.0, 0.5, 4.0}
    methods = {one.role.method for one in found if one.role.is_student}
    assert methods == {"progressive", "stochastic"}
