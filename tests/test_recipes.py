"""The recipes: scripts that are sound, commands that are ours, a job that goes on."""

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
import yaml

from vdiff_jax.command.source import find
from vdiff_jax.command.words import understand
from vdiff_jax.workdir import layout

ROOT = pathlib.Path(__file__).parents[1]
RECIPES = ROOT / "recipes"
SLURM, KUBERNETES, TPU = (
    RECIPES / name for name in ("slurm.sh", "kubernetes.yaml", "tpu_pod.sh")
)
SCALING = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")


def _objects():
    return {each["kind"]: each for each in yaml.safe_load_all(KUBERNETES.read_text())}


def _job():
    return _objects()["Job"]["spec"]


def _program(folder, name, text):
    """Writes a program that `_environment` puts before others of its name."""
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def _environment(folder, **variables):
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, **variables}


def test_the_page_names_every_recipe_and_no_other():
    named = set(re.findall(r"recipes/[\w.]+", SCALING))
    assert named == {f"recipes/{path.name}" for path in RECIPES.iterdir()}


def test_what_the_page_quotes_stands_in_the_recipe():
    """Settings in backquotes, in the paragraph that begins with a recipe's system."""
    for title, recipe, settings in (
        ("SLURM", SLURM, ("--signal=TERM@120", "--ntasks-per-node=1")),
        ("Kubernetes", KUBERNETES, ("terminationGracePeriodSeconds",)),
        ("TPU pod", TPU, ("--worker=all",)),
    ):
        paragraph = re.search(rf"\*\*{title}\.\*\*(.*?)(?=\n\*\*|\n## )", SCALING, re.S)
        quoted = re.findall(r"`(-?-?[\w-]+[=: ]*[\w@.-]*)`", paragraph[1])
        assert {*settings} <= {*quoted}
        text = recipe.read_text()
        assert [each for each in quoted if each not in text] == []


def test_the_scripts_are_sound():
    # Of the environment of the tests, which need not be on the path.
    shellcheck = pathlib.Path(sys.executable).with_name("shellcheck")
    subprocess.run([shellcheck, SLURM, TPU], check=True)


def test_the_manifest_is_of_the_published_schema():
    from kubernetes_validate import validate  # here, because it takes a second

    for each in _objects().values():
        validate(each, "1.37", strict=True)
        each["spec"]["nonsense"] = 1
        with pytest.raises(Exception, match="nonsense"):
            validate(each, "1.37", strict=True)


def _understood(command, **variables):
    """The flags of a command of a shell, whose config is there."""
    for name, value in variables.items():
        command = re.sub(rf'"?\${name}"?', value, command)
    words = command.partition("launch.py")[2].split()
    flags = understand(words).flags
    assert find(flags.config).place.name == "imagenet64.py"
    return flags


def test_the_processes_of_the_manifest_find_each_other():
    service, job = _objects()["Service"], _job()
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    command = container["command"][-1]
    assert command.startswith("exec python")
    flags = _understood(command, JOB_COMPLETION_INDEX="3")
    assert flags.process_id == 3
    assert flags.num_processes == job["completions"] == job["parallelism"]
    name, port = _objects()["Job"]["metadata"]["name"], container["ports"][0]
    assert service["metadata"]["name"] == pod["subdomain"]
    assert flags.coordinator == f"{name}-0.{pod['subdomain']}:{port['containerPort']}"
    (selected,) = service["spec"]["selector"].values()
    assert selected == name
    mounted = [mount["mountPath"] for mount in container["volumeMounts"]]
    assert str(pathlib.Path(flags.workdir).parent) in mounted


def test_a_preempted_pod_is_no_failure_and_a_mistake_is_one_at_once():
    job = _job()
    actions = {
        code: rule["action"]
        for rule in job["podFailurePolicy"]["rules"]
        for code in rule.get("onExitCodes", {}).get("values", ["preempted"])
    }
    preempted = 128 + signal.SIGTERM
    assert actions == {2: "FailJob", preempted: "Ignore", "preempted": "Ignore"}
    # The policy is for pods that are not started again where they are.
    assert job["template"]["spec"]["restartPolicy"] == "Never"


def test_workers_of_a_tpu_get_the_command_word_by_word(tmp_path):
    (tmp_path / "vdiff_jax").mkdir()
    show = "#!/bin/bash\nprintf '%s\\n' \"$@\" "
    _program(tmp_path, "python", show)
    _program(
        tmp_path,
        "gcloud",
        f'{show} > gcloud.txt\nfor word; do true; done\nbash -c "${{word#*=}}"\n',
    )
    environment = _environment(tmp_path, WORKDIR="/shared/my runs")
    field = "--config.train.learning_rate=1e-4"
    done = subprocess.run(
        ["bash", TPU, field, "--config.sample.labels=cat, dog"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    words = done.stdout.splitlines()
    assert words[0] == "launch.py"
    flags, fields, _ = understand(words[1:])
    assert find(flags.config).place.name == "imagenet64.py"
    assert flags.workdir == "/shared/my runs"
    assert flags.distributed
    assert fields["train.learning_rate"] == 1e-4
    assert fields["sample.labels"] == ("cat", "dog")
    assert "--worker=all" in (tmp_path / "gcloud.txt").read_text()


@pytest.mark.parametrize(
    ("tasks", "gpus", "devices"), [("1", "4", "0,1,2,3"), ("8", "8", ""), ("1", "", "")]
)
def test_a_process_that_is_alone_on_its_node_takes_its_gpus(
    tmp_path, tasks, gpus, devices
):
    _program(tmp_path, "srun", '#!/bin/bash\necho "$JAX_LOCAL_DEVICE_IDS"\n')
    variables = {"SLURM_NTASKS_PER_NODE": tasks, "SLURM_GPUS_ON_NODE": gpus}
    done = subprocess.run(
        ["bash", SLURM],
        env=_environment(tmp_path, **variables),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == devices


# A srun of one machine: the processes of a step, each with what SLURM tells it.
SRUN = f"""#!{sys.executable}
import os, signal, subprocess, sys
words = [word for word in sys.argv[1:] if not word.startswith("--kill-on-bad-exit")]
tasks = []
signal.signal(
    signal.SIGTERM, lambda number, _: [task.send_signal(number) for task in tasks]
)
for task in range(int(os.environ["SLURM_NTASKS"])):
    own = {{"SLURM_PROCID": str(task), "SLURM_LOCALID": "0"}}
    own["SLURM_STEP_NODELIST"] = "127.0.0.1"
    environment = {{**os.environ, **own}}
    tasks.append(subprocess.Popen(words, env=environment, start_new_session=True))
sys.exit(max(task.wait() % 256 for task in tasks))
"""
SCONTROL = "#!/bin/bash\necho $@ >> requeued.txt\n"
CONFIG = """
import tiny
def get_config(stage):
    return tiny.small(stage)
"""
FIELDS = (
    "--config.train.steps=400",
    "--config.train.log_every_steps=10",
    "--config.train.checkpoint_every_steps=200",
    "--config.train.eval_every_steps=200",
    "--config.train.sample_every_steps=0",
)


def _job_with_a_free_port():
    """The number of a job; JAX takes the port of process 0 from it."""
    for job in range(os.getpid() % 4096, 8192):
        with socket.socket() as port:
            try:
                port.bind(("127.0.0.1", 61440 + job % 4096))
            except OSError:
                continue
            return job
    raise OSError("no port is free")


class _Cluster:
    """A cluster of this machine, with a queue of one job of two processes."""

    def __init__(self, folder):
        self.folder = folder
        _program(folder, "srun", SRUN)
        _program(folder, "scontrol", SCONTROL)
        (folder / "tiny_config.py").write_text(CONFIG)
        self._job = _job_with_a_free_port()

    def start(self, workdir):
        return subprocess.Popen(
            ["bash", SLURM, *FIELDS],
            cwd=self.folder,
            env=_environment(
                self.folder,
                CONFIG=f"{self.folder / 'tiny_config.py'}:train",
                WORKDIR=str(workdir),
                PYTHON=sys.executable,
                PYTHONPATH=f"{ROOT}:{ROOT / 'tests'}",
                SLURM_JOB_ID=str(self._job),
                SLURM_NTASKS="2",
                JAX_NUM_CPU_DEVICES="1",
            ),
            start_new_session=True,
        )

    @property
    def requeued(self):
        path = self.folder / "requeued.txt"
        return path.read_text().split("\n") if path.exists() else []


def _wait_for(path, process, seconds=240.0):
    end = time.monotonic() + seconds
    while not path.exists() or not path.read_text():
        assert process.poll() is None, "the job has ended"
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.long
def test_a_job_of_slurm_is_requeued_and_ends_with_the_same_bits(tmp_path):
    # The script is started in the project's folder, where launch.py is.
    (tmp_path / "launch.py").symlink_to(ROOT / "launch.py")
    cluster = _Cluster(tmp_path)
    untouched, preempted = tmp_path / "untouched", tmp_path / "preempted"
    assert cluster.start(untouched).wait(240) == 0
    assert cluster.requeued == []

    job = cluster.start(preempted)
    _wait_for(preempted / "train" / "metrics.jsonl", job)
    os.killpg(job.pid, signal.SIGTERM)  # to the shell and, by srun, to the processes
    assert job.wait(120) == 128 + signal.SIGTERM
    assert len(cluster.requeued) == 2  # a line
    assert layout.result(preempted / "train") is None
    assert cluster.start(preempted).wait(240) == 0
    before, after = (layout.result(each / "train") for each in (untouched, preempted))
    assert after["step"] == 400
    assert after["params_sha256"] == before["params_sha256"]
