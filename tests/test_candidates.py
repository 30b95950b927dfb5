"""What is measured, and what it costs."""

import hashlib
import subprocess
import sys
import types

import numpy as np
import pytest

import tiny
from vdiff_jax.distillation import progressive
from vdiff_jax.distillation.methods import METHODS
from vdiff_jax.distillation.role import BASE, GUIDED, student
from vdiff_jax.evaluation.features import Features
from vdiff_jax.evaluation.measurement import Measurement
from vdiff_jax.generation.conditions import of_arrays
from vdiff_jax.stages.evaluate import bench
from vdiff_jax.stages.evaluate.bench import Bench
from vdiff_jax.stages.evaluate.candidates import (
    Candidate,
    candidate_of,
    candidates,
)
from vdiff_jax.stages.evaluate.judge import Judge
from vdiff_jax.stages.evaluate.records import OURS
from vdiff_jax.workdir.layout import Project, methods_in

# The keys of rows and the names of files of kept images as they were before 0.2.
BEFORE = [
    (Candidate(BASE, "ddim", 8), "0cf707a0ba116720", "base-ddim-0008"),
    (Candidate(BASE, "heun", 8, 0.5), "da60f2a51f89526a", "base-heun-0008-w0.5"),
    (Candidate(student(4), "ddim", 4), "7dd6c9073c710695", "distilled-ddim-0004"),
    (
        Candidate(student(4), "ddim", 4, 1.5),
        "48faf79cac9248a5",
        "distilled-ddim-0004-w1.5",
    ),
    (
        Candidate(student(4, "stochastic"), "stochastic", 4),
        "8adbaa666c49ec5c",
        "distilled-stochastic-0004",
    ),
]


@pytest.fixture(autouse=True)
def _another_method(monkeypatch):
    monkeypatch.setitem(METHODS, "moment_matching", progressive.METHOD)


def _key(candidate, eta=0.0):
    """The key of a candidate whose model has the fingerprint abc, and no reference."""
    models = types.SimpleNamespace(
        trained=lambda role: types.SimpleNamespace(sha256="abc"), eta=lambda role: eta
    )
    of_nothing = types.SimpleNamespace(
        _config=tiny.config("evaluate"), models=models, references=[],
        _published=None, _judge=None, condition_of=None,
    )  # fmt: skip
    return Bench._key(of_nothing, candidate)


@pytest.mark.parametrize(("candidate", "key", "name"), BEFORE, ids=lambda x: str(x))
def test_what_was_measured_before_there_were_methods_is_known(candidate, key, name):
    assert _key(candidate) == key
    assert str(candidate) == name


def test_fresh_noise_has_a_key_of_its_own():
    candidate = Candidate(student(4), "ddim", 4)
    assert len({_key(candidate, eta) for eta in (0.0, 0.5, 0.8)}) == 3


def test_students_of_every_method_have_keys_and_files_of_their_own():
    methods = [name for name, method in METHODS.items() if method.draws]
    students = [student(4, method) for method in methods]
    measured = [
        Candidate(role, role.sampler, 4, w) for role in students for w in (None, 2)
    ]
    assert len({_key(each) for each in measured}) == len(measured)
    names = {f"{each}-{_key(each)}.npy" for each in measured}
    assert len({str(each) for each in measured}) == len(names) == len(measured)
    # What was of other rows is removed by these names.
    assert all(OURS.fullmatch(name) for name in names)


CONTEXT = np.random.default_rng(0).normal(size=(4, 3, 8)).astype(np.float32)
FINGERPRINT = """
import numpy as np
from vdiff_jax.generation.conditions import of_arrays
from vdiff_jax.stages.evaluate.bench import _sha256

context = np.random.default_rng(0).normal(size=(4, 3, 8)).astype(np.float32)
print(_sha256(of_arrays(context, None)))
"""


def test_contexts_without_a_mask_have_the_same_key_in_every_process():
    """Once it held the address of None, and a killed evaluation began anew."""
    other = subprocess.run(
        [sys.executable, "-c", FINGERPRINT], capture_output=True, text=True, check=True
    )
    assert other.stdout.strip() == bench._sha256(of_arrays(CONTEXT, None))


def test_contexts_with_a_mask_have_the_key_that_they_had_before():
    condition_of = of_arrays(CONTEXT, np.ones((4, 3), bool))
    condition = condition_of(np.arange(bench.LABELS_AT_ONCE))
    whole = condition.context.tobytes() + condition.mask.tobytes()
    assert bench._sha256(condition_of) == hashlib.sha256(whole).hexdigest()[:16]


def test_the_judge_is_asked_for_the_classes_of_the_model():
    """Not for its own, of which the data may have fewer or more."""
    model = types.SimpleNamespace(num_classes=3)
    models = types.SimpleNamespace(
        trained=lambda role: types.SimpleNamespace(model=model)
    )
    config = tiny.config("evaluate", evaluate={"num": 8})
    of_classes = types.SimpleNamespace(_config=config, models=models, condition_of=None)
    asked = Bench._asked.func(of_classes)
    np.testing.assert_array_equal(asked, [0, 1, 2, 0, 1, 2, 0, 1])
    logits = np.eye(5)[asked]  # of a judge of five classes that is never wrong
    features = Features(None, None, logits)
    assert Judge.measure(None, features, asked)["accuracy_judge"].value == 1.0
    assert Judge.measure(None, features, (asked + 1) % 3)["accuracy_judge"].value == 0.0


def test_the_methods_of_a_project_are_those_that_it_has_or_is_to_have(tmp_path):
    project = Project(tiny.config("evaluate"), tmp_path)
    assert methods_in(project) == ["progressive"]
    (tmp_path / "distill_moment_matching").mkdir()
    assert methods_in(project) == ["progressive", "moment_matching"]
    project.config.distill.method = "stochastic"
    assert methods_in(project) == ["stochastic", "moment_matching"]
    (tmp_path / "distill").mkdir()
    assert methods_in(project) == ["progressive", "stochastic", "moment_matching"]


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
    found = candidates(config, ["progressive", "stochastic", "moment_matching"])
    assert len({str(one) for one in found}) == len(found)
    rows = [
        Measurement(**one.to_json(), evaluations=1, metric="fid", value=1.0)
        for one in found
    ]
    assert [candidate_of(row) for row in rows] == found
    assert {one.w for one in found} == {0.0, 0.5, 4.0}
    methods = {one.role.method for one in found if one.role.is_student}
    assert methods == {"progressive", "stochastic", "moment_matching"}
