"""The door for Python users: a finished model, wherever it lies, to draw from.

import vdiff_jax

model = vdiff_jax.load("data/pretrained/digits-1step.safetensors")
images = model.sample(16, seed=0)  # uint8 [16, height, width, channels]
"""

import dataclasses
import os
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num

from vdiff_jax.distillation.role import BASE, GUIDED, Role, student
from vdiff_jax.files.place import check_reachable, path_of
from vdiff_jax.from_config.check import check
from vdiff_jax.from_config.choices import Config, as_json
from vdiff_jax.from_config.defaults import defaults
from vdiff_jax.from_config.model import make_model
from vdiff_jax.from_config.starts import Starts
from vdiff_jax.generation.batches import draw
from vdiff_jax.generation.conditions import of_arrays
from vdiff_jax.generation.sampler import request
from vdiff_jax.interop.diffusers.folder import is_network
from vdiff_jax.interop.diffusers.read import of_latents, read_folder
from vdiff_jax.types import Condition, Denoiser, Params, Schedule
from vdiff_jax.workdir import imported
from vdiff_jax.workdir.classes import class_names
from vdiff_jax.workdir.layout import CONFIG, Project, result, role_of_folder
from vdiff_jax.workdir.parameters import placed
from vdiff_jax.workdir.recorded import recorded_config
from vdiff_jax.workdir.teachers import check_can_be_guided, refuse_guidance
from vdiff_jax.workdir.trained import Trained, check_sampler, find, finished, in_file

BATCH_SIZE = 64


@dataclasses.dataclass(frozen=True, repr=False)
class LoadedModel:
    """A finished model with its parameters.

    Attributes:
      path: The file or folder that it was loaded from.
      trained: Its role, its file or folder, and its network.
      config: Its network, schedule and sampling, as a config.
      params: Its parameters, whole on every device.
    """

    path: pathlib.Path
    trained: Trained
    config: Config
    params: Params

    def sample(
        self,
        num: int,
        seed: int = 0,
        *,
        steps: int | None = None,
        labels: Sequence[int | str] = (),
        context: Float[np.ndarray, " contexts tokens features"] | None = None,
        mask: Bool[np.ndarray, " contexts tokens"] | None = None,
        w: float | None = None,
        sampler: str | None = None,
        eta: float | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> Num[np.ndarray, " num h w channels"]:
        """Draws images: number i of a seed is that of the command's `sample` stage.

        Args:
          num: The number of images.
          seed: The seed of the noise.
          steps: The sampler's steps; by default those that a student was distilled for.
          labels: Classes by number or by name, in turn; by default all, in turn.
          context: Contexts, in turn, for a model that is conditioned on one; by default
            those of the held-out data.
          mask: True for the vectors of a context that count; None if all do.
          w: The guidance weight; None is no guidance.
          sampler: Its name; by default the one that the model was taught.
          eta: The share of fresh noise in each step of ddim; by default that of the
            config that it was made or exported with.
          batch_size: Images drawn at once, over all devices.

        Returns:
          uint8 images; float32 latents, for a model of latents.

        Raises:
          ValueError: If a value is out of its range, or does not suit the model.
        """
        config = self._config(num, seed, steps, labels, w, sampler, eta, batch_size)
        given = None if context is None else of_arrays(context, mask)
        starts = Starts(config, self.trained.model, class_names(self.trained), given)
        return draw(
            starts.sampler,
            self.params,
            range(num),
            request=request(config.sample.steps, w=w),
            batch_size=_divisible(min(num, batch_size)),
            start_of=starts,
        ).images

    def denoiser(
        self,
        labels: Sequence[int] | None = None,
        w: float | None = None,
        *,
        context: Float[Array, " batch tokens width"] | None = None,
        mask: Bool[Array, " batch tokens"] | None = None,
    ) -> Denoiser:
        """The model as a function (z_t, logsnr_t) -> x, eps and v; see `types`.

        Args:
          labels: The class of each example of a batch; None if it has none.
          w: The guidance weight; None is no guidance.
          context: The context of each example; None if it has none.
          mask: True for the vectors of a context that count; None if all do.
        """
        label = None if labels is None else jnp.asarray(labels, jnp.int32)
        batch = label if label is not None else context
        weight = None if w is None or batch is None else jnp.full(len(batch), w)
        condition = Condition(label, context, mask, weight)
        return self.trained.model.denoiser(self.params, condition)

    @property
    def schedule(self) -> Schedule:
        """Time in [0, 1] to log-SNR in nats."""
        return self.trained.model.schedule

    def __repr__(self) -> str:
        """One line: what it is, of what, for how many steps, and from where."""
        model = self.trained.model
        size = " x ".join(map(str, model.image_shape))
        facts = [
            f"{self.trained.role}",
            f"predicts {model.output}",
            f"{'images' if model.codec.bounded else 'latents'} of {size}",
            f"{model.num_parameters():,} parameters",
        ]
        if model.num_classes:
            facts.append(f"{model.num_classes} classes")
        if model.w_range is not None:
            low, high = model.w_range
            facts.append(f"guidance weight w from {low:g} to {high:g}")
        return f"<vdiff_jax model: {', '.join(facts)}; from {self.path}>"

    def _config(
        self,
        num: int,
        seed: int,
        steps: int | None,
        labels: Sequence[int | str],
        w: float | None,
        sampler: str | None,
        eta: float | None,
        batch_size: int,
    ) -> Config:
        """The config of the command that would draw the same images."""
        role = self.trained.role
        if not role.draws:
            raise ValueError(
                f"The {role} in {self.path} makes noise of images: it draws none."
            )
        if steps is None:
            steps = role.num_steps or self.config.loop.sample_steps
        config = self.config.copy_and_resolve_references()
        config.sample.update(
            {
                "num": num,
                "seed": seed,
                "steps": steps,
                "labels": tuple(labels),
                "w": () if w is None else (w,),
                "sampler": sampler or role.sampler,
                "eta": config.sample.eta if eta is None else eta,
                "batch_size": batch_size,
                "noise": "",  # it may be that of a command; here it is the seed's
            }
        )
        check(config)
        check_sampler(role, config.sample.sampler)
        if config.sample.w and not self.trained.takes_w:
            self._check_can_be_guided()
        return config

    def _check_can_be_guided(self) -> None:
        folder = self.trained.folder
        if folder.is_dir() and result(folder) is None:  # of diffusers
            refuse_guidance(folder, as_json(self.config))
        else:
            check_can_be_guided(folder)


def load(path: str | os.PathLike[str]) -> LoadedModel:
    """Loads a model that was trained, distilled, imported or exported.

    Args:
      path: A place on this machine, or in an object store (s3://, gs://):
        a .safetensors file of the export stage; a workdir, of which the student of
        the fewest steps is taken (of several methods, of the first in
        `distillation.methods`), or else the guided model, or the base; the folder of
        a run, such as `runs/x/distill/0004`; or a folder of diffusers.

    Raises:
      ValueError: If there is no finished model.
    """
    path = path_of(path)
    check_reachable(path, "path")
    if path.suffix == ".safetensors":
        config, trained = in_file(defaults("sample"), path)
    elif (place := role_of_folder(path)) is not None:
        workdir, role = place
        config = _recorded(workdir)
        trained = find(Project(config, workdir), role)
    elif is_network(path):
        return _of_diffusers(path)
    elif (path / CONFIG).exists():
        project = Project(_recorded(path), path)
        config, trained = project.config, find(project, *_preferred(project))
    elif path.is_dir():
        return _of_diffusers(path)
    else:
        raise ValueError(
            f"There is no model in {str(path)!r}: name a .safetensors file of export, a"
            " workdir, a folder of a run in it, or a folder of diffusers."
        )
    return LoadedModel(path, trained, config, trained.params())


def _recorded(workdir: pathlib.Path) -> Config:
    """The config that a workdir was made with, and its imported model's fields."""
    return imported.resolved(recorded_config(workdir, "sample"), workdir)


def _preferred(project: Project) -> list[Role]:
    """The finished models of a workdir that draw images, the most wanted first."""
    students = [role for role in finished(project) if role.is_student and role.draws]
    methods = list(dict.fromkeys(role.method for role in students))
    students.sort(key=lambda role: (methods.index(role.method), role.num_steps))
    return [*students, GUIDED, BASE]


def _of_diffusers(path: pathlib.Path) -> LoadedModel:
    source = of_latents(read_folder(path), path)
    config: Config = defaults("sample")
    config.data.update({"channels": 0, "image_size": 0})
    config = imported.with_fields(config, source.fields)
    if not source.can_be_guided:
        config.train.label_dropout = 0.0
    guided = "guide" in source.fields
    role = GUIDED if guided else BASE
    if source.num_steps:
        role = student(source.num_steps)
    model = make_model(config, guided=guided)
    params = placed(source.params, model.abstract_params(), path)
    return LoadedModel(path, Trained(role, path, model), config, params)


def _divisible(batch_size: int) -> int:
    """The next batch size that the devices can share."""
    return -(-batch_size // jax.device_count()) * jax.device_count()
