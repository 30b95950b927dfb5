"""A model has one folder, and a measurement one row."""

import math

import pytest

from vdiff_jax.distillation.methods import METHODS
from vdiff_jax.distillation.role import BASE, GUIDED, student
from vdiff_jax.evaluation.measurement import Measurement, from_json
from vdiff_jax.workdir.layout import CONFIG, Project, folder_of, role_of_folder
from vdiff_jax.workdir.trained import finished

ROLES = [BASE, GUIDED, *(student(n, m) for m in METHODS for n in (1, 1024))]


@pytest.mark.parametrize("role", ROLES, ids=str)
def test_the_folder_of_a_role_tells_the_role(role, tmp_path):
    folder = folder_of(tmp_path, role)
    assert role_of_folder(folder) is None  # nothing makes it a workdir
    (tmp_path / CONFIG).touch()
    assert role_of_folder(folder) == (tmp_path, role)
    assert role_of_folder(tmp_path) is None


def test_every_role_has_a_folder_and_a_name_of_its_own(tmp_path):
    assert len({folder_of(tmp_path, role) for role in ROLES}) == len(ROLES)
    assert len({str(role) for role in ROLES}) == len(ROLES)
    # As scripts of users have them.
    assert folder_of(tmp_path, student(4)) == tmp_path / "distill" / "0004"
    assert folder_of(tmp_path, student(4, "encode")) == (
        tmp_path / "distill_encode" / "0004"
    )


@pytest.mark.parametrize("role", [role for role in ROLES if role.draws], ids=str)
@pytest.mark.parametrize("w", [None, 0.0, 1.5])
def test_a_row_tells_its_measurement_and_its_role(role, w):
    steps = role.num_steps or 8
    one = Measurement(
        model=role.name, method=role.method, sampler=role.sampler, steps=steps, w=w,
        evaluations=8, metric="fid", value=2.5, values=(2.0, 3.0),
        spread=math.sqrt(0.5), key="a",
    )  # fmt: skip
    assert from_json(one.to_json()) == one
    assert ("w" in one.to_json()) == (w is not None)
    assert one.role == role
    assert from_json({**one.to_json(), "of_a_later_version": 1}) == one


def test_finished_models_are_those_with_a_result_in_the_order_they_are_made(tmp_path):
    project = Project(None, tmp_path)
    made = [BASE, student(16), student(4), student(4, "stochastic")]
    for role in reversed(made):
        folder = folder_of(tmp_path, role)
        folder.mkdir(parents=True)
        (folder / "result.json").write_text("{}")
    folder_of(tmp_path, student(2)).mkdir()  # is under way
    (tmp_path / "distill" / "0004").rename(tmp_path / "distill" / "0004.old")
    assert finished(project) == [role for role in made if role != student(4)]


@pytest.mark.parametrize("method", ["progressive", "stochastic"])
def test_a_row_of_version_0_1_tells_the_method_by_its_sampler(method):
    role = student(4, method)
    row = Measurement(
        model="distilled", method=method, sampler=role.sampler, steps=4,
        evaluations=4, metric="fid", value=2.5,
    ).to_json()  # fmt: skip
    del row["method"]
    assert from_json(row).role == role
