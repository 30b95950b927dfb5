r"""The one command: runs the stages that a config describes.

    python launch.py --config configs/digits.py
    python launch.py --config configs/cifar10.py:train --workdir runs/cifar10

The words behind the colon select stages. The same command resumes. Any field of the
config can be set: --config.train.batch_size=64. --dry_run only prints the plan,
--status how far every stage is, --profile 20 traces 20 updates, --replay 1234 looks for
the origin of a NaN in update 1234, and --distributed joins the hosts of a cluster
(docs/scaling.md). --help shows all flags, and --help train the fields of a section.

Exit status: 0 done; 1 stopped by trouble that is named; 2 a mistake in the command, the
config or the workdir; 130 and 143 ended by SIGINT and SIGTERM, everything saved.
"""

import contextlib
import io
import json
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from vdiff_jax.files.place import check_reachable, is_in_store, path_of
from vdiff_jax.training import interrupts

if __name__ == "__main__":
    interrupts.end_at_once()  # in the seconds that the next lines take as well
    if "--status" in sys.argv:  # who only looks need not wait for them
        from vdiff_jax.stages.status import command as status

        sys.exit(status.main(sys.argv))

import jax
from ml_collections import ConfigDict

from vdiff_jax import compilation_cache, parallel
from vdiff_jax.codec import Autoencoder
from vdiff_jax.command import manual
from vdiff_jax.command.parse import parse
from vdiff_jax.command.words import Flags
from vdiff_jax.datasets.loader import LoaderError
from vdiff_jax.files.fingerprints import DamagedError
from vdiff_jax.from_config.check import check, check_fields, check_files
from vdiff_jax.from_config.choices import as_json, section_of
from vdiff_jax.from_config.fields import TRAINING, words_of
from vdiff_jax.from_config.model import has_guide, make_codec, make_model
from vdiff_jax.interop.diffusers.autoencoder import abstract_params
from vdiff_jax.stages import Stage, distill, export, guide, import_model, replay, train
from vdiff_jax.stages.evaluate import stage as evaluate
from vdiff_jax.stages.sample import images as sample
from vdiff_jax.stages.status import command as status
from vdiff_jax.training.interrupts import InterruptedRunError
from vdiff_jax.training.loop import NonFiniteError
from vdiff_jax.workdir import imported
from vdiff_jax.workdir.known import known, tell
from vdiff_jax.workdir.layout import Project, lock

STAGES = {
    module.STAGE.name: module.STAGE
    for module in (train, guide, distill, sample, evaluate, export, import_model)
}
# They read the models of a workdir, and write beside them or to another folder.
READERS = (sample.STAGE, evaluate.STAGE, export.STAGE)
# Trouble on the way, that another start of the same command may outlive.
TROUBLE = (DamagedError, LoaderError, NonFiniteError, OSError)


def main(argv: Sequence[str]) -> int:
    """Runs; returns the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # any name of a file can be printed
            stream.reconfigure(errors="backslashreplace")
    try:
        return _run(argv)
    except (ValueError, KeyboardInterrupt, InterruptedRunError, *TROUBLE) as error:
        if "--traceback" in argv:
            raise
        return _end(*_reason(error))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            reason = (
                "Out of memory; parallel.remat, grad_accum_steps or parallel.fsdp help"
            )
        elif _joined():
            reason = "Another host is gone, or a device"
        else:
            raise
        if "--traceback" in argv:
            raise
        return _end(f"{reason}: {error}", 1)


def _run(argv: Sequence[str]) -> int:
    """Runs what a command asks for; returns the exit status."""
    if (page := manual.page(argv[1:])) is not None:
        print(page, end="")
        return 0
    command = parse(argv)
    config, workdir, flags = command.config, command.workdir, command.flags
    if flags.status:
        return status.main(argv)
    if flags.replay is not None and (flags.dry_run or flags.out):
        raise ValueError(
            f"--replay={flags.replay} computes an update again, and writes nothing but"
            " what it finds: leave out --dry_run and --out."
        )
    check_fields(config)
    check_reachable(workdir, "--workdir")
    if flags.out:
        check_reachable(path_of(flags.out), "--out")
    if flags.profile and is_in_store(workdir):
        raise ValueError(
            f"--profile={flags.profile}: a trace is written to a disk of this machine:"
            " choose a --workdir there."
        )
    if flags.compilation_cache and not flags.dry_run:
        print(f"launch: {compilation_cache.use()}")
    _join(flags)
    if not _joined():
        parallel.use_cores(_batch_sizes(_known(config, workdir, command.asked)))
    if flags.replay is None:
        launch(
            config,
            workdir,
            asked=command.asked,
            dry_run=flags.dry_run,
            profile=flags.profile,
            out=path_of(flags.out) if flags.out else None,
        )
        return 0
    config = _checked(config, workdir, command.asked)
    project = Project(config, workdir, asked=command.asked)
    with lock(workdir):
        replay.run(project, chosen_stages(project.config), flags.replay)
    return 0


def launch(
    config: ConfigDict,
    workdir: pathlib.Path,
    *,
    asked: frozenset[str] = frozenset(),
    dry_run: bool = False,
    profile: int = 0,
    out: pathlib.Path | None = None,
) -> None:
    """Runs the stages of a config in a workdir, or prints what would be run.

    Args:
      config: The config of a file in configs/.
      workdir: The project's folder.
      asked: Paths of the fields that the command itself sets.
      dry_run: Prints one JSON object, and starts nothing.
      profile: Updates to trace in each stage that trains.
      out: The folder that sample, evaluate and export write to; None: the workdir.

    Raises:
      ValueError: If anything in the config or the workdir does not fit.
    """
    config = _checked(config, workdir, asked)
    stages = chosen_stages(config)
    project = Project(config, workdir, profile, asked, out)
    only_read = [stage for stage in stages if stage in READERS] == stages
    if out is not None and not only_read:
        raise ValueError(
            f"--out={out} is for sample, evaluate and export: the others write to the"
            " workdir."
        )
    for stage in stages:
        stage.check(project)
    if dry_run:
        if import_model.STAGE in stages:
            config = import_model.described(config)
        description = {
            "config": as_json(config),
            **_parameters(config),
            "devices": [str(device) for device in jax.devices()],
            "run": [entry for stage in stages for entry in stage.plan(project)],
        }
        print(json.dumps(description, indent=2))
        return
    # Images can be drawn from a workdir while a run is at work in it.
    place = project.output if only_read else workdir
    alone = contextlib.nullcontext() if stages == [sample.STAGE] else lock(place)
    with alone as check_still_there:
        for stage in stages:
            stage.run(project)
            if check_still_there is not None:
                check_still_there()


def _parameters(config: ConfigDict) -> dict[str, int]:
    """The numbers of parameters: of the network, and of the autoencoder of latents."""
    counts = {"parameters": make_model(config).num_parameters()}
    codec = make_codec(config)
    if isinstance(codec, Autoencoder):
        leaves = jax.tree.leaves(abstract_params(codec.net))
        counts["autoencoder_parameters"] = sum(leaf.size for leaf in leaves)
    return counts


def chosen_stages(config: ConfigDict) -> list[Stage]:
    """The stages that a config selects, in their order."""
    if config.stage == "all":
        guided = [guide.STAGE] if has_guide(config) else []
        return [train.STAGE, *guided, distill.STAGE, evaluate.STAGE]
    return [STAGES[word] for word in words_of(config.stage)]


def _known(
    config: ConfigDict, workdir: pathlib.Path, asked: frozenset[str]
) -> ConfigDict:
    """The config with what the workdir knows."""
    if config.stage == "import":
        return config
    stages = {stage.name for stage in chosen_stages(config)}
    return imported.resolved(known(config, asked, workdir, stages), workdir)


def _checked(
    config: ConfigDict, workdir: pathlib.Path, asked: frozenset[str]
) -> ConfigDict:
    """The config with what the workdir knows, checked.

    Raises:
      ValueError: If a field is wrong; it names its value, and what would be right.
    """
    check_fields(config)
    of_command, config = config, _known(config, workdir, asked)
    tell(of_command, config, workdir)
    check(config)
    check_files(config)
    return config


def _join(flags: Flags) -> None:
    """Joins the hosts of the run, if there are several."""
    if flags.coordinator or flags.distributed:
        parallel.start(flags.coordinator, flags.num_processes, flags.process_id)
    elif flags.num_processes is not None or flags.process_id is not None:
        raise ValueError("--num_processes and --process_id need --coordinator.")


def _batch_sizes(config: ConfigDict) -> list[int]:
    """The sizes of the parts that go through a device at once, in training."""
    sections: list[Any] = [section_of(config, stage) for stage in TRAINING]
    return [each.batch_size // max(each.grad_accum_steps, 1) for each in sections]


def _joined() -> bool:
    return jax.distributed.is_initialized()


def _reason(error: BaseException) -> tuple[str, int]:
    """The reason why the run ends, and the exit status."""
    if isinstance(error, InterruptedRunError):
        return str(error), error.exit_status
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; the same command resumes.", 130
    return str(error), 1 if isinstance(error, TROUBLE) else 2


def _end(reason: str, status: int) -> int:
    """Prints in one line why the run ends; returns the exit status."""
    print(f"launch.py: {' '.join(reason.split())}", file=sys.stderr)
    if _joined():
        # An orderly end would wait for hosts that are not coming.
        sys.stdout.flush()
        os._exit(status)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv))
