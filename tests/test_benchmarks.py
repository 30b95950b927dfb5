"""The benchmarks measure what they say; how fast anything is, no test asks.

Contenders' processes import this module, so what is slow to import waits until a test
needs it.
"""

import dataclasses
import itertools
import math
import os
import pathlib
import time

import pytest

from benchmarks import contest
from benchmarks.contest import Contender, Result

FLAG = os.environ.get("BENCHMARK_FLAG")


@dataclasses.dataclass
class Recorder:
    """Notes its turns in a file, and fails at turn number `fails_at`."""

    path: pathlib.Path
    name: str
    per_call: int = 1
    fails_at: int = 0
    turns: int = 0

    def __call__(self, repetitions):
        self.turns += 1
        if self.turns == self.fails_at:
            raise ValueError("too tired\nto go on")
        with self.path.open("a") as file:
            file.write(f"{self.name} {repetitions} {FLAG}\n")
        time.sleep(0.01 * repetitions)

    def peak_memory(self):
        return 7.0


def leave():
    os._exit(3)


def sleep():
    time.sleep(600)


@pytest.fixture(scope="module")
def held(tmp_path_factory):
    """The results of a contest, and the turns that were noted: (name, n, flag)."""
    path = tmp_path_factory.mktemp("contest") / "turns"
    ballast = b"1" * 2**28

    def contender(name, env, **options):
        return Contender(name, Recorder, {"path": path, "name": name, **options}, env)

    contenders = [
        contender("ours", {"BENCHMARK_FLAG": "up"}),
        contender("peer", {}, per_call=4),
        # Its first turns are the warm-up and the calibration.
        contender("tired", {}, fails_at=4),
        Contender("unmade", Recorder, {"path": path}),
        Contender("gone", leave),
    ]
    results = contest.measure(contenders, rounds=3, seconds=0.02)
    assert len(ballast) == 2**28
    lines = path.read_text().splitlines()
    return results, [line.split() for line in lines]


def test_contenders_take_turns(held):
    _, turns = held
    names = [name for name, *_ in turns]
    # Once all are ready:
    assert names[-7:] == ["ours", "peer", "tired", "ours", "peer", "ours", "peer"]
    # Who is not ready yet is not disturbed by those who are.
    before = [name for name, _ in itertools.groupby(names[:-7])]
    assert before == ["ours", "peer", "tired"]


def test_repetitions_are_whole_calls(held):
    results, turns = held
    counts = [int(count) for name, count, _ in turns if name == "peer"]
    assert all(count % 4 == 0 for count in counts)
    assert counts[-3:] == [results["peer"].repetitions] * 3


def test_the_environment_is_there_before_anything_is_imported(held):
    _, turns = held
    assert {(name, flag) for name, _, flag in turns} == {
        ("ours", "up"),
        ("peer", "None"),
        ("tired", "None"),
    }
    assert "BENCHMARK_FLAG" not in os.environ


def test_who_fails_is_named_and_the_others_go_on(held):
    results, _ = held
    assert [len(results[name].seconds) for name in results] == [3, 3, 1, 0, 0]
    rows = contest.rows(results, "ours", job="train")
    failed = {row["what"]: row["failed"] for row in rows if "failed" in row}
    assert failed["tired"].startswith("ValueError: too tired")
    assert "missing 1 required positional argument: 'name'" in failed["unmade"]
    assert failed["gone"] == "its process ended with exit code 3"
    lines = contest.table(rows).splitlines()
    assert len(lines) == 6
    assert lines[3].endswith("failed: ValueError: too tired")


def test_memory_is_each_ones_own(held):
    results, _ = held
    assert results["ours"].peak_mib < 128  # this process has the ballast
    assert results["ours"].device_peak_mib == 7.0


def test_who_does_not_answer_in_time_has_failed():
    began = time.monotonic()
    results = contest.measure(
        [Contender("sleepy", sleep)], rounds=1, seconds=1.0, limit=1.0
    )
    assert results["sleepy"].failed == "there was no time left"
    assert time.monotonic() - began < 60


def test_ratios_are_of_the_same_round():
    results = {
        "ours": Result(seconds=[1.0, 2.0, 4.0], cpu_seconds=[2.0] * 3, peak_mib=9.0),
        "peer": Result(seconds=[3.0, 2.0, 8.0], cpu_seconds=[2.0] * 3, peak_mib=9.0),
    }
    ours, peer = contest.rows(results, "ours", job="train", size="tiny")
    assert (ours["ms"], peer["ms"]) == (2000.0, 3000.0)
    assert (ours["ratio"], ours["ratio_min"], ours["ratio_max"]) == (1.0, 1.0, 1.0)
    assert (peer["ratio"], peer["ratio_min"], peer["ratio_max"]) == (2.0, 1.0, 3.0)
    assert (peer["job"], peer["size"]) == ("train", "tiny")


def test_without_ours_there_are_times_but_no_ratios():
    results = {
        "ours": Result(failed="out of memory"),
        "peer": Result(seconds=[3.0], cpu_seconds=[3.0], peak_mib=9.0),
    }
    ours, peer = contest.rows(results, "ours")
    assert ours == {"what": "ours", "failed": "out of memory"}
    assert peer["ms"] == 3000.0
    assert "ratio" not in peer
    assert "failed: out of memory" in contest.table([ours, peer])


@pytest.mark.parametrize(
    ("size", "parameters", "batch_size"),
    [
        ("digits", 249_668, 64),
        ("cifar4m", 3_769_795, 32),
        ("cifar10", 60_004_099, 128),
        ("imagenet64", 295_900_035, 2048),
    ],
)
def test_sizes_are_what_they_are_called(size, parameters, batch_size):
    from benchmarks import sizes
    from vdiff_jax.from_config.model import make_model

    config = sizes.config(size, "bfloat16")
    assert make_model(config).num_parameters() == parameters
    assert config.train.batch_size == config.distill.batch_size == batch_size
    assert config.model.dtype == "bfloat16"


def test_an_unknown_size_is_refused():
    from benchmarks import sizes

    with pytest.raises(ValueError, match="choose from"):
        sizes.config("huge")


NETS = {
    "blocks": ([(8, 1, 0, True), (16, 2, 2, True)], {}),
    "convolutions": ([(8, 1, 2, False), (12, 1, 0, False), (12, 1, 0, True)], {}),
    "patches": ([(16, 2, 2, True)], {"patch": 2, "num_classes": 3}),
}


@pytest.mark.parametrize(("levels", "options"), NETS.values(), ids=NETS)
def test_multiply_adds_are_those_of_the_traced_network(levels, options):
    import jax
    import jax.numpy as jnp

    from benchmarks import flops
    from vdiff_jax.nets.unet import Level, UNet
    from vdiff_jax.types import Condition

    names = ("features", "num_blocks", "num_heads", "resample_in_block")
    net = UNet(
        levels=tuple(Level(**dict(zip(names, l, strict=True))) for l in levels),
        out_channels=3,
        emb_features=16,
        groups=4,
        **options,
    )
    condition = Condition(jnp.zeros(1, jnp.int32) if net.num_classes else None)
    inputs = (jnp.zeros((1, 16, 16, 3)), jnp.zeros(1), condition)
    params = jax.eval_shape(net.init, jax.random.key(0), *inputs)
    traced = jax.make_jaxpr(net.apply)(params, *inputs)

    counted = flops.multiply_adds(net, (16, 16, 3))
    assert sum(counted.values()) == _products(traced.jaxpr)
    inside = flops.multiply_adds(net, (16, 16, 3), padding=False)
    assert inside["convolutions"] < counted["convolutions"]
    assert {**inside, "convolutions": 0} == {**counted, "convolutions": 0}


def _products(jaxpr):
    """Multiply-adds of all convolutions and products of matrices in a program."""
    total = 0
    for equation in jaxpr.eqns:
        out, name = equation.outvars[0].aval, equation.primitive.name
        if name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            features = equation.params["dimension_numbers"].rhs_spec[0]
            total += out.size * math.prod(kernel) // kernel[features]
        elif name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += out.size * math.prod(shape[axis] for axis in contracted)
        else:
            parts = [_products(inner) for inner in _inner(equation)]
            # Of the branches for several platforms one is run. That for CPUs has a few
            # products more, which stand for sums.
            total += min(parts) if name == "cond" else sum(parts)
    return total


def _inner(equation):
    """The programs in an operation such as a call."""
    for value in equation.params.values():
        for each in value if isinstance(value, tuple) else (value,):
            inner = getattr(each, "jaxpr", each)
            if hasattr(inner, "eqns"):
                yield inner


def test_xla_counts_what_is_inside_the_picture_and_a_little_more():
    from benchmarks import flops

    cost = flops.of_size("digits")
    # Norms, activations and sums: more for a small network than for a large one.
    assert 1.0 < cost["by_xla"] / cost["without_padding"] < 1.1


@pytest.mark.slow
@pytest.mark.parametrize("method", ["progressive", "moment_matching"])
def test_our_jobs_are_the_projects_own(monkeypatch, method):
    import jax

    from benchmarks import ours, sizes

    module, changes = sizes.SIZES["tiny"]
    told = {**changes, "model": {**changes["model"], "num_classes": 10}}
    monkeypatch.setitem(sizes.SIZES, "tiny", (module, told))
    updates = ours.distill("tiny", batch_size=4, steps_per_call=3, method=method)
    state, metrics = jax.eval_shape(
        updates.step, updates.state, updates.feed, updates.job
    )
    assert metrics["loss"].shape == (3,)
    assert ("gap" in metrics) == (method == "moment_matching")
    assert updates.per_call == 3
    assert updates.feed.items.image.shape == (3, 4, 8, 8, 1)
    assert len(updates.feed.items.image.sharding.device_set) == jax.device_count()
    assert jax.tree.map(lambda leaf: leaf.shape, state) == jax.tree.map(
        lambda leaf: leaf.shape, updates.state
    )


@pytest.mark.parametrize("job", ["train", "distill", "sample"])
def test_the_peers_do_every_job(job):
    from benchmarks import steps

    given = {"size": "tiny", "num_steps": 2} if job == "sample" else {"size": "tiny"}
    _, eager = steps.lineup(job, steps.PEERS, "", **given)[:2]
    eager.make(**eager.kwargs)(1)


def test_the_pipeline_of_diffusers_draws_what_it_has_a_network_for():
    from benchmarks import steps

    everybody = [steps.OURS, *steps.PEERS]
    for job, size, dtype, names in (
        ("sample", "digits", "float32", everybody),
        ("sample", "digits", "bfloat16", everybody[:3]),
        ("sample", "tiny", "float32", everybody[:3]),
        ("train", "digits", "float32", everybody[:3]),
        ("match", "digits", "float32", everybody[:1]),
    ):
        given = {"size": size, "dtype": dtype, "num_steps": 2}
        found = steps.lineup(job, steps.PEERS, "", **given)
        assert [contender.name for contender in found] == names
        assert found[0].env["JAX_NUM_CPU_DEVICES"]
