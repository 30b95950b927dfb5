"""What people write on the command line and into a config: understood, or one line."""

import io
import json
import pathlib
import shutil
import sys
import types

import jax
import numpy as np
import pytest

import launch
import tiny
import vdiff_jax
from configs import digits
from vdiff_jax.command.parse import parse
from vdiff_jax.command.words import FLAGS, understand
from vdiff_jax.from_config import packages
from vdiff_jax.from_config.check import check, check_fields
from vdiff_jax.from_config.choices import as_json, section_of
from vdiff_jax.from_config.data import make_source
from vdiff_jax.from_config.defaults import defaults
from vdiff_jax.from_config.fields import FIELDS, PIPELINE, SECTIONS, STAGES
from vdiff_jax.from_config.ranges import LARGEST
from vdiff_jax.training.step import make_optimizer
from vdiff_jax.workdir.recorded import recorded_config

COPY = """\
from configs import digits


def get_config(stage="all"):
    config = digits.get_config(stage)
"""


@pytest.fixture
def refusal(capsys, tmp_path, monkeypatch):
    """Runs a command that is wrong; returns the one line on it."""
    monkeypatch.setattr(launch.parallel, "use_cores", lambda sizes: None)

    def run(*words):
        where = [] if any("workdir" in word for word in words) else [tmp_path / "none"]
        # Were it not refused, nothing would begin.
        words = (*words, *(f"--workdir={folder}" for folder in where))
        status = launch.main(["launch.py", *words, "--dry_run"])
        out, err = capsys.readouterr()
        lines = [line for line in err.splitlines() if not line.startswith("config: ")]
        assert (status, out) == (2, "")
        assert len(lines) == 1
        assert len(lines[0]) < 300
        assert not (tmp_path / "none").exists()
        return lines[0].removeprefix("launch.py: ")

    return run


@pytest.fixture
def file(tmp_path):
    """Writes a config file."""

    def write(content, name="mine.py"):
        (tmp_path / name).write_text(content)
        return str(tmp_path / name)

    return write


def _command(*words):
    return parse(["launch.py", *words])


def _value(path, *words):
    """The value of a field in a command on the digits."""
    command = _command("--config=digits", *words)
    assert path in command.asked
    return command.config[path]


# The config and its stages.


@pytest.mark.parametrize(
    "name", ["configs/digits.py", "configs/digits", "digits.py", "digits"]
)
@pytest.mark.parametrize("stage", ["", *STAGES, "train,distill", "train, evaluate"])
def test_a_config_is_known_by_its_name_with_and_without_stages(name, stage):
    command = _command("--config", f"{name}:{stage}" if stage else name)
    words = stage.replace(" ", "") or "all"
    assert as_json(command.config) == as_json(digits.get_config(words))
    assert command.workdir == pathlib.Path("runs/digits")
    assert command.asked == frozenset()


def test_stages_run_in_the_order_in_which_they_are_named():
    for words in ("train,distill", "train,guide,distill,sample,evaluate,export"):
        chosen = launch.chosen_stages(digits.get_config(words))
        assert [stage.name for stage in chosen] == words.split(",")


def test_what_ties_stages_is_asked_of_each_of_several():
    config = digits.get_config("train,distill")
    config.distill.start_steps = 100
    with pytest.raises(ValueError, match="start_steps=100 does not arrive"):
        check(config)
    config = digits.get_config("train,guide")
    with pytest.raises(ValueError, match=r"guide\.steps=0 turns the guide stage off"):
        check(config)
    config = digits.get_config("train,guide,evaluate")
    config.model.num_classes = 10
    config.guide.steps = 1
    check(config)
    config.train.label_dropout = 0.0
    with pytest.raises(ValueError, match=r"label_dropout=0\.0 leaves out no class"):
        check(config)


@pytest.mark.parametrize("stage", ["", ":sample"])
def test_a_workdir_is_the_config_that_it_was_made_with(small_project, stage):
    command = _command(
        "--config", f"{small_project}{stage}", "--config.sample.num=3", "--dry-run"
    )
    assert command.workdir == small_project
    assert command.asked == {"sample.num"}
    expected = recorded_config(small_project, stage[1:] or "all")
    expected.sample.num = 3
    assert as_json(command.config) == as_json(expected)
    check(command.config)
    other = _command(f"--config={small_project}", "--workdir=elsewhere")
    assert other.workdir == pathlib.Path("elsewhere")


def test_places_of_configs_may_have_colons_and_spaces(file, tmp_path):
    for name in ("a b.py", "a:b.py", "läuf:train.py", "a[1]*.py"):
        path = file(COPY + "    return config\n", name)
        assert _command(f"--config={path}").config.stage == "all"
        assert _command(f"--config={path}:train").config.stage == "train"
        assert _command(f"--config={path[:-3]}:train").config.stage == "train"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("digist", "no config file or workdir digist; near it: digits"),
        ("configs/digitz.py:train", "workdir configs/digitz.py; near it: digits"),
        ("configs/nothing.py", "there are cars64, celebahq256, cifar10,"),
        ("configs", "configs is a folder without config.json"),
        ("README.md", "README.md is no file of Python"),
        ("tests/tiny.py", "tests/tiny.py has no function get_config(stage)"),
        ("digits:trian", "no stage 'trian'; the nearest is train. The stages: all,"),
        ("digits:", "no stage ''"),
        ("digits:train+distill", "no stage 'train+distill'"),
        ("digits:train,", "no stage ''"),
        ("digits:train:distill", "separated by commas: write digits:train,distill"),
        ("digits:distill,train", "not in the order of the pipeline: write :train,dis"),
        ("digits:train,train", "not in the order of the pipeline: write :train."),
        ("digits:all,train", "The stage all runs by itself"),
        ("digits:import,train", "The stage import runs by itself"),
        ("", "--config='' must be a config file or a workdir"),
    ],
)
def test_a_config_that_is_not_there_is_named_with_what_is_near(refusal, text, message):
    assert message in refusal(f"--config={text}")


# Flags.


def test_dashes_are_as_good_as_underscores():
    flags = understand(["--dry-run", "--process-id=1", "--num-processes", "2"]).flags
    assert (flags.dry_run, flags.process_id, flags.num_processes) == (True, 1, 2)
    assert understand(["-dry_run", "false"]).flags.dry_run is False
    assert understand(["--nodry_run"]).flags.dry_run is False
    assert understand(["--no-dry-run"]).flags.dry_run is False
    assert understand(["--config.train.batch-size=3"]).fields == {"train.batch_size": 3}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "No config is named: write --config configs/digits.py"),
        (["--config"], "--config has no value: write --config=VALUE, a config file"),
        (["digits"], "'digits' is no flag, and no value of one: write --config digits"),
        (["train"], "stages are named as in --config digits:train"),
        (["config.train.steps=5"], "no flag: write --config.train.steps=VALUE"),
        (["train.steps=5"], "no flag: write --config.train.steps=VALUE"),
        (["--config.train.steps:5"], "no flag: write --config.train.steps=VALUE"),
        (["--"], "'--' is no flag: write --FLAG=VALUE"),
        (["--dry-rnu"], "Unknown flag --dry-rnu; the nearest is --dry_run."),
        (["--workdri=x"], "Unknown flag --workdri; the nearest is --workdir."),
        (["--seed=3"], "Unknown flag --seed: write --config.seed."),
        (["--train.steps=3"], "Unknown flag --train.steps: write --config.train.ste"),
        (["--batch_size", "4"], "nearest is --config.train.batch_size."),
        (["--gpus=2"], "Unknown flag --gpus: see --help."),
        (["--dry_run=perhaps"], "--dry_run='perhaps' must be True or False"),
        (["--profile=-3"], "--profile=-3 must be a whole number of at least 0"),
        (["--profile"], "--profile has no value: write --profile=VALUE, a whole"),
        (["--replay=x"], "--replay='x' must be a whole number of at least 0"),
        (["--num_processes=0"], "--num_processes=0 must be a whole number of at l"),
        (["--workdir="], "--workdir='' must be a folder"),
        (["--workdir"], "--workdir has no value"),
        (["--noconfig.train.steps"], "write --config.train.steps=VALUE"),
        (["--help", "trian"], "no help on 'trian'; the nearest is train"),
        (["--help", "train.stepz"], "the nearest is train.steps"),
        (["--help=xyz"], "no help on 'xyz': see --help"),
    ],
    ids=str,
)
def test_words_that_nothing_knows_are_named_with_the_nearest(refusal, words, message):
    assert message in refusal(*words)


@pytest.mark.parametrize("word", ["--help", "-h", "-help", "--helpfull", "--help="])
def test_help_is_the_command_its_stages_flags_and_examples(word, capsys):
    assert launch.main(["launch.py", word]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for flag in (*FLAGS, "help"):
        assert f"--{flag} " in out
    for stage in (*PIPELINE, "import"):
        assert f"\n    {stage} " in out
    assert out.count("    python launch.py --config ") == 4  # how, and three examples
    for line in out.split("Examples:\n")[1].splitlines()[:3]:
        _, _, *words = line.split()
        assert understand(words).flags.config
    assert "--help train.steps" in out
    assert max(map(len, out.splitlines())) <= 100


@pytest.mark.parametrize("section", [name for name in SECTIONS if name])
def test_help_on_a_section_is_its_fields_with_their_ranges(section, capsys):
    assert launch.main(["launch.py", "--help", section]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for name, field in SECTIONS[section].fields.items():
        facts = f"{field.doc} Default {field.default!r}; {field.allowed.describe()}."
        assert f"--config.{section}.{name} {' '.join(facts.split())}" in out


@pytest.mark.parametrize(
    ("topic", "field"),
    [
        ("train.steps", "--config.train.steps"),
        ("--config.train.steps=5", "--config.train.steps"),
        ("train.steps_per_call", "--config.train.steps_per_call"),
        ("seed", "--config.seed"),
        ("import", "--config.source.path"),
    ],
)
def test_help_on_a_field_is_that_field(topic, field, capsys):
    assert launch.main(["launch.py", "--help", topic]) == 0
    assert capsys.readouterr().out.count(f"{field}\n") == 1


# Values.


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("train.steps", "2e4", 20_000),
        ("train.steps", "20k", 20_000),
        ("train.steps", "20K", 20_000),
        ("train.steps", "1M", 1_000_000),
        ("train.steps", "1.5k", 1500),
        ("train.steps", "0.5M", 500_000),
        ("train.steps", "20_000", 20_000),
        ("train.steps", "300.0", 300),
        ("train.steps", " 300 ", 300),
        ("seed", "2e9", 2_000_000_000),
        ("train.learning_rate", "1e-4", 1e-4),
        ("train.learning_rate", "1", 1.0),
        ("train.learning_rate", ".001", 1e-3),
        ("guide.w_scale", "2k", 2000.0),
        ("data.flip", "No", False),
        ("data.flip", "on", True),
        ("model.unet.multipliers", "4", (4,)),
        ("model.unet.multipliers", "(4)", (4,)),
        ("model.unet.multipliers", "(4,)", (4,)),
        ("model.unet.multipliers", "1,2,4", (1, 2, 4)),
        ("model.unet.multipliers", "1, 2, 4", (1, 2, 4)),
        ("model.unet.multipliers", "[1, 2.0, 4]", (1, 2, 4)),
        ("model.unet.attention_resolutions", "()", ()),
        ("model.unet.attention_resolutions", "", ()),
        ("sample.w", "0, 1e0,4", (0.0, 1.0, 4.0)),
        ("evaluate.features", "classifier", ("classifier",)),
        ("evaluate.features", "('classifier', \"pixels\")", ("classifier", "pixels")),
        ("evaluate.steps", "1 2 4", (1, 2, 4)),
        (
            "evaluate.files",
            "('a b/1,2.safetensors', \"c.safetensors\")",
            ("a b/1,2.safetensors", "c.safetensors"),
        ),
        ("export.formats", "orbax,stablehlo", ("orbax", "stablehlo")),
        ("distill.updates", "400", "400"),
        ("train.steps_per_call", "1e1", 10),
    ],
)
@pytest.mark.parametrize("as_word", [False, True])
def test_values_are_understood_as_people_write_them(path, text, value, as_word):
    flag = f"--config.{path}"
    words = [flag, text] if as_word else [f"{flag}={text}"]
    understood = _value(path, *words, "--config.sample.num=3")
    assert understood == value
    assert type(understood) is type(value)
    if isinstance(value, tuple):
        assert list(map(type, understood)) == list(map(type, value))


def test_a_number_is_the_nearest_float_and_every_digit_of_a_whole_one():
    rng = np.random.default_rng(0)
    for number in (*rng.random(50), *np.exp(rng.normal(size=50) * 20), 5e-324):
        text = repr(float(number))
        assert _value("guide.w_scale", f"--config.guide.w_scale={text}") == number
    assert _value("seed", f"--config.seed={LARGEST}") == LARGEST


def test_a_switch_may_stand_alone_or_before_its_value():
    path = "data.flip"
    assert _value(path, "--config.data.flip") is True
    assert _value(path, "--config.data.flip", "--dry_run") is True
    assert _value(path, "--config.data.flip", "false", "--dry_run") is False
    assert _value(path, "--noconfig.data.flip") is False


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("train.step=3", "no field train.step; the nearest is train.steps."),
        ("trian.steps=3", "no field trian.steps; the nearest is train.steps."),
        ("steps=3", "no field steps; the nearest is train.steps."),
        ("train=5", "train is a section of fields: --help train lists them"),
        ("train", "train is a section of fields: --help train lists them"),
        ("train.steps", "--config.train.steps has no value"),
        ("train.steps=", "train.steps='' must be a whole number of at least 1."),
        ("train.steps=1,000", "train.steps='1,000' must be a whole number"),
        ("train.steps=1.0005k", "train.steps=1000.5 must be a whole number"),
        ("train.steps=20m", "train.steps='20m' must be a whole number"),
        ("train.steps=2**4", "train.steps='2**4' must be a whole number"),
        ("train.steps=-5", "train.steps=-5 must be a whole number of at least 1."),
        ("train.steps=3e9", "train.steps=3000000000 must be a whole number of at"),
        ("train.steps=1e99", "and at most 2147483647"),
        ("train.steps=nan", "train.steps=nan must be a whole number"),
        ("train.steps=" + "9" * 500, "must be a whole number"),
        ("train.batch_size=0", "train.batch_size=0 must be a whole number"),
        ("train.batch_size=-64", "train.batch_size=-64 must be a whole number"),
        ("loop.steps_per_call=0", "loop.steps_per_call=0 must be a whole number"),
        ("train.steps_per_call=0", "train.steps_per_call=0 must be a whole number"),
        ("train.dropout=20", "train.dropout=20.0 must be a number from 0 to below 1"),
        ("train.learning_rate=-1e-4", "train.learning_rate=-0.0001 must be a number"),
        ("train.learning_rate=fast", "train.learning_rate='fast' must be a number"),
        ("train.ema_decay=9999", "train.ema_decay=9999.0 must be a number from 0 to"),
        ("train.weight_decay=-1", "train.weight_decay=-1.0 must be a number of at"),
        ("loop.grad_clip=-1", "loop.grad_clip=-1.0 must be a number of at least 0."),
        ("loop.grad_clip=inf", "loop.grad_clip=inf must be a number of at least 0."),
        ("model.unet.multipliers=()", "model.unet.multipliers=() must be a tuple of"),
        ("model.unet.multipliers=1,1.5", "model.unet.multipliers=(1, 1.5) must be"),
        ("model.unet.multipliers=(1,0)", "model.unet.multipliers=(1, 0) must be"),
        ("model.unet.multipliers=((1,2)", "model.unet.multipliers='((1,2)' must be"),
        ("model.unet.groups=0", "model.unet.groups=0 must be a whole number"),
        ("model.unet.patch=0", "model.unet.patch=0 must be a whole number"),
        ("model.unet.num_blocks=0", "model.unet.num_blocks=0 must be a whole number"),
        ("data.workers=-1", "data.workers=-1 must be a whole number of at least 0"),
        ("data.held_out=-5", "data.held_out=-5 must be a whole number of at least 0"),
        ("data.flip=maybe", "data.flip='maybe' must be True or False."),
        ("sample.labels=(-1,)", "sample.labels=('-1',) must be a tuple of classes"),
        ("sample.w=-1", "sample.w=(-1.0,) must be a tuple of guidance weights w"),
        ("evaluate.steps=all", "evaluate.steps='all' must be a tuple of numbers of"),
        ("evaluate.steps=(1,2.5)", "evaluate.steps=(1, 2.5) must be a tuple"),
        ("evaluate.features=fid", "evaluate.features=('fid',) must be a tuple of"),
        ("diffusion.betas=(0.1,2)", "diffusion.betas=(0.1, 2.0) must be a tuple"),
        ("export.formats=onnx", "export.formats=('onnx',) must be a tuple of at"),
        ("distill.updates=400:2", "distill.updates='400:2' must be a number above"),
        ("distill.updates=3000000000", "distill.updates='3000000000' must be"),
        ("distill.updates=4, 2: 1, 2: 5", "distill.updates='4, 2: 1, 2: 5' must be"),
        ("seed=20261125143000", "seed=20261125143000 must be a whole number from 0"),
        ("sample.seed=20261125143000", "sample.seed=20261125143000 must be a whole"),
        ("evaluate.seed=20261125143000", "evaluate.seed=20261125143000 must be a wh"),
        ("evaluate.seed=-1", "evaluate.seed=-1 must be a whole number from 0"),
        ("evaluate.seed=2147483646", "end at seed 2147483648: the last must be at"),
        ("stage=nothing", "stage='nothing' must be one of all, train, guide,"),
        ("stage=evaluate,train", "or several in this order: train,distill"),
    ],
)
def test_values_out_of_range_are_one_line_in_every_stage(refusal, word, message):
    for stage in ("", *STAGES):
        name = f"digits:{stage}" if stage else "digits"
        line = refusal(
            f"--config={name}",
            "--config.model.num_classes=10",
            "--config.guide.steps=1",
            "--config.source.path=x",
            f"--config.{word}",
            "--dry_run",
        )
        assert message in line


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("model.net=os:system", "is called with out_channels, num_classes"),
        ("model.net=builtins:dict", "makes a dict: it must be a flax module"),
        ("model.net=no_such:net", "model.net='no_such:net' is neither built in nor"),
        ("data.source=no_such:one", "data.source='no_such:one' is neither built in"),
        ("data.source=tfds", "data.name='' must be a data set"),
        ("distill.start_steps=100", "start_steps=100 does not arrive"),
    ],
)
def test_names_that_lead_nowhere_are_one_line(refusal, word, message):
    assert message in refusal("--config=digits", f"--config.{word}", "--dry_run")


def test_a_source_of_the_users_that_fails_is_named():
    config = _command("--config=digits", "--config.data.source=json:loads").config
    with pytest.raises(ValueError, match=r"data\.source='json:loads': Expecting value"):
        make_source(config, "train")


def test_a_batch_that_does_not_divide_is_refused_before_an_earlier_stage(refusal):
    word = "--config.distill.grad_accum_steps=3"
    line = refusal("--config=digits:train,distill", word)
    assert "distill: batch_size=64 does not divide over 2 devices" in line


def test_what_is_asked_for_all_stages_goes_before_what_a_workdir_has_for_one(
    small_project,
):
    words = [f"--config={small_project}:train", "--config.loop.log_every_steps=7"]
    config = _command(*words).config
    assert section_of(config, "train").log_every_steps == 7
    assert section_of(config, "train").checkpoint_every_steps == 2  # as it was
    config = _command(*words, "--config.train.log_every_steps=3").config
    assert section_of(config, "train").log_every_steps == 3


def test_a_field_of_a_workdir_that_nobody_knows_is_one_line(
    refusal, small_project, tmp_path
):
    workdir = shutil.copytree(small_project, tmp_path / "workdir")
    record = json.loads((workdir / "config.json").read_text())
    record["config"]["guide"]["brand_new"] = 1
    (workdir / "config.json").write_text(json.dumps(record))
    line = refusal(f"--config={workdir}:sample", f"--workdir={workdir}")
    assert "brand_new" in line


def test_the_status_is_printed_however_it_is_asked_for(small_project, capsys):
    for word in ("--status", "--status=true", "-status"):
        assert launch.main(["launch.py", f"--config={small_project}", word]) == 0
        assert capsys.readouterr().out.startswith(str(small_project))


@pytest.mark.parametrize("word", ["--dry_run", "--out=elsewhere"])
def test_a_replay_is_neither_dry_nor_elsewhere(refusal, word):
    line = refusal("--config=digits", "--replay=3", word)
    assert line.startswith("--replay=3 computes an update again")


def test_spaces_around_the_equals_sign_are_refused(refusal):
    line = refusal("--config=digits", "--config.train.steps", "=", "5")
    assert line == "train.steps='=' must be a whole number of at least 1."


def test_the_seeds_of_every_stage_follow_one_rule(small_project):
    for path in ("seed", "sample.seed", "evaluate.seed"):
        assert FIELDS[path].allowed == FIELDS["seed"].allowed
    allowed = FIELDS["seed"].allowed
    assert allowed.contains(0)
    assert allowed.contains(LARGEST)
    assert not allowed.contains(LARGEST + 1)
    model = vdiff_jax.load(small_project)
    with pytest.raises(ValueError, match=r"sample\.seed=20261125143000 must be"):
        model.sample(1, seed=20261125143000)
    config = digits.get_config("evaluate")
    config.evaluate.update({"seed": LARGEST - 2, "repeats": 3})
    check(config)


# Paths.


PATHS = [path for path, field in FIELDS.items() if field.allowed.is_path]


def test_every_field_of_a_place_is_known():
    assert set(PATHS) == {
        "data.autoencoder", "data.path", "distill.teacher", "evaluate.images",
        "evaluate.inception_weights", "evaluate.reference_stats", "guide.teacher",
        "sample.context", "sample.from_file", "sample.image", "sample.noise",
        "source.path", "train.init_from",
    }  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_the_home_of_the_user_is_found_in_every_path(path, monkeypatch, file):
    monkeypatch.setenv("HOME", "/home/me")
    assert _value(path, f"--config.{path}=~/x") == "/home/me/x"
    content = f"{COPY}    config.{path} = '~/x'\n    return config\n"
    assert _command(f"--config={file(content)}").config[path] == "/home/me/x"
    section, name = path.split(".")
    config = digits.get_config()
    config.update({section: {name: pathlib.Path("~/x")}})
    assert config[path] == "/home/me/x"
    assert _value(path, f"--config.{path}=a~/x") == "a~/x"


def test_the_home_of_the_user_is_found_in_the_places_of_the_command(
    monkeypatch, tmp_path
):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.py").write_text(COPY + "    return config\n")
    command = _command("--config=~/mine.py:train", "--workdir=~/runs/x")
    assert command.config.stage == "train"
    assert command.workdir == tmp_path / "runs" / "x"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_names_that_a_terminal_cannot_show_are_shown_escaped(monkeypatch, encoding):
    err = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stderr", err)
    assert launch.main(["launch.py", "--config=configs/数字\udcff.py"]) == 2
    err.flush()
    line = err.buffer.getvalue().decode(encoding)
    assert r"workdir configs/\u6570\u5b57\udcff.py" in line


# Config files.


@pytest.mark.parametrize(
    "content",
    [
        "from configs import digits\nget_config = digits.get_config\n",
        "from configs import digits\ndef get_config():\n return digits.get_config()\n",
        "from configs import digits\ndef get_config(stage):\n"
        " return digits.get_config()\n",
        "from configs import digits\ndef get_config(*words):\n"
        " return digits.get_config(*words)\n",
        "from configs import digits\ndef get_config(*, stage='all'):\n"
        " return digits.get_config(stage)\n",
    ],
)
def test_the_stage_that_is_asked_for_runs_whatever_a_file_does(file, content):
    path = file(content)
    for stage in ("train", "sample", "train,distill"):
        assert _command(f"--config={path}:{stage}").config.stage == stage
    assert _command(f"--config={path}").config.stage == "all"


@pytest.mark.parametrize(
    "content",
    [
        "from ml_collections import ConfigDict\n"
        "def get_config(stage='all'):\n"
        " config = ConfigDict({'train': {'steps': 7.0}})\n"
        " config.sample = {'num': 5}\n"
        " return config\n",
        "def get_config(stage='all'):\n"
        " return {'train': {'steps': 7}, 'sample': {'num': 5}}\n",
    ],
)
def test_a_config_of_its_own_making_has_our_defaults(file, content):
    config = _command(f"--config={file(content)}:train").config
    expected = defaults("train")
    expected.update({"train": {"steps": 7}, "sample": {"num": 5}})
    assert as_json(config) == as_json(expected)


def test_attributes_take_what_update_takes(file):
    content = COPY + (
        "    config.train.steps_per_call = 5\n"
        "    config.train.steps = 2e4\n"
        "    config.train.learning_rate = 1\n"
        "    config.model.unet.multipliers = [1]\n"
        "    config.model.unet.attention_resolutions = 8\n"
        "    config.distill.updates = 400\n"
        "    config.guide = {'w_range': [1, 4], 'steps_per_call': 3}\n"
        "    return config\n"
    )
    config = _command(f"--config={file(content)}").config
    expected = digits.get_config()
    expected.update(
        {
            "train": {"steps_per_call": 5, "steps": 20_000, "learning_rate": 1.0},
            "model": {"unet": {"multipliers": (1,), "attention_resolutions": (8,)}},
            "distill": {"updates": "400"},
            "guide": {"w_range": (1.0, 4.0), "steps_per_call": 3},
        }
    )
    assert as_json(config) == as_json(expected)
    assert isinstance(config.train.steps, int)
    assert section_of(config, "train").steps_per_call == 5
    assert section_of(config, "distill").steps_per_call == 10
    assert config.is_locked
    check(config)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", "returns nothing: its last line must be `return config`."),
        ("    config.train.stepz = 5\n", "no field train.stepz; the nearest is tra"),
        ("    config.trian.steps = 5\n", "no field trian; the nearest is train"),
        ("    config['train']['stepz'] = 5\n", "no field train.stepz; the nearest"),
        ("    config.update({'train': {'stepz': 5}})\n", "no field train.stepz; the"),
        (
            "    config.model.update({'channels': 5})\n",
            "no field model.channels; the near",
        ),
        ("    config.sample.steps_per_call = 5\n", "no field sample.steps_per_call"),
        ("    config.train.stepz > 5\n", "no field train.stepz; the nearest is tra"),
        ("    config.train.steps = '20'\n", "train.steps='20' must be a whole numb"),
        ("    config.train.steps = None\n", "train.steps=None must be a whole numb"),
        ("    config.train.steps_per_call = 'x'\n", "train.steps_per_call='x' must"),
        ("    config.train.learning_rate = True\n", "train.learning_rate=True must"),
        ("    config.data.flip = 'false'\n", "data.flip='false' must be True or F"),
        ("    config.train = 5\n", "train is a section of fields, and takes no val"),
        ("    config.update({'train': 5})\n", "train is a section of fields, and t"),
        ("    config.train.steps = STEPS\n", "NameError: name 'STEPS' is not defin"),
        ("    assert False, 'first\\nsecond'\n", "AssertionError: first"),
        ("    return {}['x']\n", "KeyError: x"),
        ("    return 1 / 0\n", "ZeroDivisionError: division by zero"),
        ("    raise SystemExit(3)\n", "SystemExit: 3"),
        ("    config.train.steps = = 5\n", "invalid syntax"),
        ("  return config\n", "unindent does not match"),
        ("    from configs import nothing\n", "ImportError: cannot import name"),
        ("    import no_such_thing\n", "ModuleNotFoundError: No module named"),
    ],
)
def test_a_mistake_in_a_copied_config_is_its_reason_and_its_line(
    refusal, file, lines, message
):
    path = file(COPY + lines)
    line = refusal(f"--config={path}:train")
    assert line.startswith(message) or line.startswith(f"get_config of {path}")
    assert message in line
    if lines:
        assert line.endswith(f"({path}, line 6).")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x = 1\n", "has no function get_config(stage)"),
        ("get_config = 5\n", "has no function get_config(stage)"),
        ("def get_config(stage):\n return 'digits'\n", "returns a str, and must ret"),
        ("def get_config(a, b):\n pass\n", "takes a, b: it is called with the stage"),
        (
            "def get_config(s):\n return {'dates': 1}\n",
            "no field dates; the nearest is data (",
        ),
        ("def get_config(s):\n return {'train': {'steps': '5'}}\n", "steps='5' must"),
        ("import no_such_thing\n", "No module named 'no_such_thing' ("),
        ("1 / 0\n", "ZeroDivisionError: division by zero ("),
        ("def get_config(:\n", "invalid syntax"),
    ],
)
def test_a_file_that_makes_no_config_is_one_line(refusal, file, content, message):
    assert message in refusal(f"--config={file(content)}:train")


def test_a_value_out_of_range_is_refused_wherever_it_was_set(refusal, file):
    path = file(COPY + "    config.train.steps = -5\n    return config\n")
    line = refusal(f"--config={path}")
    assert line == "train.steps=-5 must be a whole number of at least 1."


def test_a_copy_of_a_config_is_one_that_checks_its_fields_too():
    config = digits.get_config().copy_and_resolve_references()
    with pytest.raises(AttributeError, match=r"no field train\.stepz"):
        config.train.stepz = 5
    config.train.steps = 2e1
    assert config.train.steps == 20
    assert digits.get_config().train.steps == 3500


# The clip of a gradient.


def test_no_clip_is_what_an_infinite_clip_gives_bit_for_bit():
    params = {"w": jax.random.normal(jax.random.key(0), (64,))}
    gradient = jax.tree.map(lambda leaf: 1e6 * leaf, params)

    def update(grad_clip):
        optimizer = make_optimizer(grad_clip=grad_clip, weight_decay=0.1)
        state = optimizer.init(params)
        updates, state = jax.jit(optimizer.update)(gradient, state, params)
        return updates, state

    for off, infinite in zip(
        *(jax.tree.leaves(update(clip)) for clip in (0.0, np.inf)), strict=True
    ):
        np.testing.assert_array_equal(off, infinite)
    assert jax.tree.structure(update(0.0)) == jax.tree.structure(update(1.0))
    small = jax.tree.leaves(update(1.0)[1])
    assert any(
        (before != after).any()
        for before, after in zip(small, jax.tree.leaves(update(0.0)[1]), strict=True)
    )


@pytest.mark.parametrize("section", ["loop", "train", "guide", "distill"])
def test_a_clip_of_zero_is_off_in_every_stage(section):
    config = digits.get_config()
    config.update({section: {"grad_clip": 0}})
    check_fields(config)


# Packages.


def test_weights_and_biases_are_asked_for_before_training(
    refusal, monkeypatch, tmp_path
):
    words = ("--config=digits:train", "--config.wandb_project=x", "--dry_run")
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "wandb", types.ModuleType("wandb"))
    assert "no key to log in with: run `wandb login`" in refusal(*words)
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert "not installed: pip install 'vdiff_jax[wandb]'" in refusal(*words)
    config = _command("--config=digits:sample", "--config.wandb_project=x").config
    launch.check_files(config)  # nothing is logged


@pytest.mark.parametrize(
    "have",
    [
        lambda home, env: env("WANDB_API_KEY", "k"),
        lambda home, env: env("WANDB_MODE", "offline"),
        lambda home, env: env("WANDB_MODE", "disabled"),
        lambda home, env: (home / ".netrc").write_text(
            "machine api.wandb.ai login user password k\n"
        ),
        lambda home, env: (
            (home / "other").write_text("machine wandb.me login user password k\n"),
            env("NETRC", str(home / "other")),
            env("WANDB_BASE_URL", "https://wandb.me"),
        ),
        lambda home, env: (
            (home / "settings").write_text("[default]\nmode = offline\n"),
            env("WANDB_CONFIG_DIR", str(home)),
        ),
    ],
)
def test_weights_and_biases_with_a_key_or_offline_will_do(have, monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "wandb", types.ModuleType("wandb"))
    with pytest.raises(ValueError, match="no key"):
        packages.require_wandb("x")
    have(tmp_path, monkeypatch.setenv)
    packages.require_wandb("x")


@pytest.mark.parametrize(
    ("package", "words", "message"),
    [
        (
            "flatbuffers",
            ["--config=digits:export", "--config.export.formats=orbax,stablehlo"],
            "export.formats=('orbax', 'stablehlo') needs flatbuffers, which is not inst"
            "alled: pip install 'vdiff_jax[export]'.",
        ),
        (
            "tensorflow_datasets",
            ["--config=cifar10:train"],
            "data.source='tfds' needs tensorflow_datasets, which is not installed: pip"
            " install tensorflow-datasets.",
        ),
    ],
)
def test_packages_that_are_missing_are_named_first(
    refusal, monkeypatch, package, words, message
):
    monkeypatch.setitem(sys.modules, package, None)
    assert refusal(*words) == message


# Import.


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "google/ddpm-cifar10-32",
            "hf download google/ddpm-cifar10-32 --local-dir ddpm-cifar10-32, then",
        ),
        (
            "https://huggingface.co/google/ddpm-cifar10-32/tree/main",
            "hf download google/ddpm-cifar10-32 --local-dir ddpm-cifar10-32, then",
        ),
        ("a/b/c", "source.path='a/b/c': there is no such file or folder."),
        ("weights.bin", "a file of torch, which does not show its network: name the"),
        ("", "source.path='' is empty: name a folder of diffusers"),
    ],
)
def test_what_is_no_model_to_import_is_named_with_what_is(
    refusal, monkeypatch, tmp_path, path, message
):
    root = pathlib.Path(__file__).parents[1]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.bin").touch()
    config = root / "configs" / "import_model.py"
    line = refusal(f"--config={config}:import", f"--config.source.path={path}")
    assert message in line
    assert "pickle" not in line


@pytest.mark.parametrize("stage", [*PIPELINE, "train,distill"])
def test_a_workdir_without_the_model_to_import_is_one_line(refusal, stage):
    line = refusal(f"--config=import_model:{stage}")
    assert line.startswith("data.image_size=0 must be at least 1: ")
    assert "run the import stage first" in line


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("sample", "run the train stage first"),
        ("evaluate", "run the train stage first"),
        ("export", "run the train stage first"),
    ],
)
def test_a_workdir_that_is_not_there_is_one_line(tmp_path, stage, message):
    with pytest.raises(ValueError, match=message):
        launch.launch(tiny.small(stage), tmp_path / "none")
