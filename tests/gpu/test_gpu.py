"""What holds on a GPU: numbers, files that travel, and what goes wrong there.

Each test starts processes of its own, as users do: JAX takes a GPU with its first use
and keeps it, and programs on a CPU and on a GPU are to be compared.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

pytestmark = pytest.mark.gpu

ROOT = pathlib.Path(__file__).parents[2]
STUDENT = ROOT / "data" / "pretrained" / "digits-4step.safetensors"
SHARED = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
ON_CPU = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
# Without it kernels may sum in another order each time.
EXACTLY = {"XLA_FLAGS": "--xla_gpu_exclude_nondeterministic_ops=true"}
SHORT = {
    "train.steps": 60,
    "train.checkpoint_every_steps": 20,
    "train.log_every_steps": 20,
    "train.sample_every_steps": 0,
    "train.eval_every_steps": 0,
}


def start(workdir, *flags, stage="train", fields=None, env=None):
    """The command of the digits, under way."""
    fields = SHORT if fields is None else fields
    return subprocess.Popen(
        [
            sys.executable, "launch.py", f"--config=configs/digits.py:{stage}",
            f"--workdir={workdir}", *flags,
            *(f"--config.{name}={value}" for name, value in fields.items()),
        ],
        cwd=ROOT,
        env={**os.environ, **SHARED, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip


def run(workdir, *flags, **options):
    """The same to its end: its exit status and what it said."""
    process = start(workdir, *flags, **options)
    said, _ = process.communicate(timeout=300)
    return process.returncode, said


def finished(workdir, *flags, **options):
    """The same, which must succeed: the SHA-256 of its parameters."""
    status, said = run(workdir, *flags, **options)
    assert status == 0, said
    return json.loads((workdir / "train" / "result.json").read_text())["params_sha256"]


def script(code, *arguments, env=None):
    """Runs Python code in a process of its own; what it printed."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, **SHARED, "PYTHONPATH": path, **(env or {})}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def losses(workdir):
    lines = (workdir / "train" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return np.array([row["loss"] for row in rows if "loss" in row])


def test_the_loss_in_bfloat16_is_that_in_float32(tmp_path):
    fields = {**SHORT, "train.steps": 200, "train.log_every_steps": 10}
    curves = []
    for dtype in ("float32", "bfloat16"):
        workdir = tmp_path / dtype
        finished(workdir, fields={**fields, "model.dtype": dtype})
        curves.append(losses(workdir))
    exact, short = curves
    assert len(exact) == 20
    assert exact[-1] < 0.6 * exact[0]
    np.testing.assert_allclose(short, exact, rtol=0.01)


# Codes between which TF32, with 10 bits, sees no difference.
EXACT = """
import jax, jax.numpy as jnp, numpy as np
from vdiff_jax.nets.autoencoder import nearest_code
codes = np.array([[1.0, 0.0], [1.001, 0.0]], np.float32)
latents = jnp.broadcast_to(codes[:, None, None], (2, 4, 4, 2))
numbers = jax.jit(nearest_code)(latents, codes)
print(jax.default_backend(), *np.asarray(numbers)[:, 0, 0])
"""


def test_codes_are_compared_in_full_precision():
    assert script(EXACT).split() == ["gpu", "0", "1"]


ATTENTION = """
import sys, jax, jax.numpy as jnp, numpy as np
from vdiff_jax.nets import attention
key = jax.random.split(jax.random.key(0), 4)
q, k, v, d = (jax.random.normal(each, (4, 256, 4, 32), jnp.bfloat16) for each in key)
assert attention.can_be_fused(q) and not attention.can_be_fused(q.astype(jnp.float32))
def gradients(function, *arguments):
    out, pull = jax.vjp(function, *arguments)
    return out, *pull(d.astype(out.dtype))
fused = jax.jit(lambda *x: gradients(attention.attend, *x))
assert "cudnn" in fused.lower(q, k, v).as_text()
exact = gradients(
    attention.attend_on_cpu, *(x.astype(jnp.float32) for x in (q, k, v))
)
for x, y in zip(fused(q, k, v), exact, strict=True):
    print(np.abs(np.asarray(x, np.float32) - y).max() / np.abs(y).max())
"""


def test_fused_attention_is_attention():
    errors = [float(line) for line in script(ATTENTION).splitlines()]
    assert len(errors) == 4  # of the values, and of three gradients
    assert max(errors) < 0.02


WORK = """
from configs import cifar10_gpu
from vdiff_jax.from_config.model import make_model
print(make_model(cifar10_gpu.get_config()).forward_flops())
"""


def test_the_work_of_a_network_is_counted_on_a_gpu_too():
    on_gpu, on_cpu = (float(script(WORK, env=env)) for env in (None, ON_CPU))
    assert on_gpu == on_cpu > 6e8


DRAW = """
import sys, numpy as np, vdiff_jax
model = vdiff_jax.load(sys.argv[1])
np.save(sys.argv[2], model.sample(64, seed=0).astype(np.int16))
"""


@pytest.mark.parametrize(
    ("precision", "mean", "most"), [("highest", 0.001, 1), ("default", 0.5, 40)]
)
def test_samples_are_those_of_a_cpu(tmp_path, precision, mean, most):
    """By TF32, which JAX takes on a GPU unless it is told otherwise, nearly."""
    images = []
    for name, env in (
        ("cpu", ON_CPU),
        ("gpu", {"JAX_DEFAULT_MATMUL_PRECISION": precision}),
    ):
        script(DRAW, STUDENT, tmp_path / f"{name}.npy", env=env)
        images.append(np.load(tmp_path / f"{name}.npy"))
    difference = np.abs(images[0] - images[1])
    assert difference.mean() < mean
    assert difference.max() <= most


STABLEHLO = """
import sys, jax, numpy as np
from jax import export
from safetensors.numpy import load_file
folder = sys.argv[1]
call = export.deserialize(bytearray(open(folder + "/sampler.bin", "rb").read())).call
print(jax.default_backend())
x = jax.jit(call)(load_file(folder + "/weights.safetensors"), np.load(sys.argv[2]))
np.save(sys.argv[3], x)
"""


def test_an_exported_sampler_draws_on_a_gpu_what_it_draws_on_a_cpu(tmp_path):
    fields = {**SHORT, "export.formats": "('stablehlo',)", "export.steps": 4}
    finished(tmp_path / "run", env=ON_CPU)
    status, said = run(tmp_path / "run", stage="export", fields=fields, env=ON_CPU)
    assert status == 0, said
    (code,) = (tmp_path / "run").rglob("sampler.bin")
    z = np.random.default_rng(0).normal(size=(16, 8, 8, 1)).astype(np.float32)
    np.save(tmp_path / "z.npy", z)
    x = []
    for platform, env in (
        ("cpu", ON_CPU),
        ("gpu", {"JAX_DEFAULT_MATMUL_PRECISION": "highest"}),
    ):
        path = tmp_path / f"{platform}.npy"
        said = script(STABLEHLO, code.parent, tmp_path / "z.npy", path, env=env)
        assert platform in said
        x.append(np.load(path))
    # The exported program's own products may be TF32's, with 10 bits.
    np.testing.assert_allclose(x[1], x[0], atol=0.02)


TRAVEL = """
import sys, pathlib, jax
from configs import digits
from vdiff_jax import parallel
from vdiff_jax.files.fingerprints import params_sha256
from vdiff_jax.from_config.model import make_model
from vdiff_jax.from_config.step import optimizer_of
from vdiff_jax.from_config.choices import section_of
from vdiff_jax.training import checkpoints
from vdiff_jax.training.step import init_state
there, back = (pathlib.Path(name) for name in sys.argv[1:])
config = digits.get_config()
optimizer = optimizer_of(section_of(config, "train"))
model = make_model(config)
make = lambda: init_state(model.init(jax.random.key(0)), optimizer)
state = jax.eval_shape(make)
shardings = parallel.state_shardings(state, parallel.make_mesh())
state, info = checkpoints.restore(there, state, shardings)
info.pop("fingerprint", None)
with checkpoints.open_folder(back) as opened:
    checkpoints.save(opened, state, info)
print(jax.default_backend(), params_sha256(jax.device_get(state)))
"""


def test_a_checkpoint_goes_to_a_cpu_and_back_bit_for_bit(tmp_path):
    finished(tmp_path / "run")
    place = tmp_path / "run" / "train" / "checkpoints"
    said = [
        script(TRAVEL, place, tmp_path / "cpu", env=ON_CPU),
        script(TRAVEL, tmp_path / "cpu", tmp_path / "gpu"),
        script(TRAVEL, tmp_path / "gpu", tmp_path / "again"),
    ]
    backends, hashes = zip(*(line.split() for line in said), strict=True)
    assert backends == ("cpu", "gpu", "gpu")
    assert len(set(hashes)) == 1


def test_a_run_killed_and_resumed_ends_as_one_that_was_not(tmp_path):
    whole = finished(tmp_path / "whole", env=EXACTLY)
    workdir = tmp_path / "killed"
    process = start(workdir, env=EXACTLY)
    saved = workdir / "train" / "checkpoints" / "20"
    while not saved.is_dir() and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert finished(workdir, env=EXACTLY) == whole


def test_two_runs_share_a_gpu(tmp_path):
    processes = [start(tmp_path / str(i), env=EXACTLY) for i in range(2)]
    for process in processes:
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
    results = [
        json.loads((tmp_path / str(i) / "train" / "result.json").read_text())
        for i in range(2)
    ]
    assert results[0]["params_sha256"] == results[1]["params_sha256"]


def test_too_little_memory_is_said_with_what_helps(tmp_path):
    many = {**SHORT, "train.batch_size": 1024, "train.steps_per_call": 1}
    little = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.002"}
    status, said = run(tmp_path / "run", fields=many, env=little)
    assert status == 1
    assert "Out of memory; parallel.remat, grad_accum_steps or" in said
    assert "Traceback" not in said


def test_a_profile_has_the_kernels(tmp_path):
    finished(tmp_path / "run", "--profile=20")
    (trace,) = (tmp_path / "run" / "train" / "profile").rglob("*.xplane.pb")
    assert b"/device:GPU:0" in trace.read_bytes()
