"""Records of a run for people: metrics, a progress bar and grids of images.

Of several hosts only one writes; the others call the same functions in vain.
"""

import hashlib
import importlib
import json
import os
import pathlib
import tempfile
import time
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from vdiff_jax import parallel
from vdiff_jax.files import lease
from vdiff_jax.files.atomic import naming, remove, to_json, write_bytes
from vdiff_jax.files.place import is_in_store
from vdiff_jax.generation.grids import enlarge, save_image, tile
from vdiff_jax.progress import Bar, say
from vdiff_jax.training import lines
from vdiff_jax.training.throughput import MEASURES

# The values of a line of metrics.jsonl that are of the loop and not of the loss.
OF_THE_LOOP = {"step", "time", "grad_norm", "learning_rate", "skipped", *MEASURES}


class Records:
    """Metrics of one run: in `metrics.jsonl`, on boards, and in a progress bar."""

    def __init__(
        self,
        folder: pathlib.Path,
        *,
        name: str,
        done: int,
        num_updates: int,
        batch_size: int,
        wandb_project: str = "",
    ):
        """Opens the files in `folder`, dropping what was logged beyond step `done`.

        Args:
          folder: Folder of the run; made if it is not there.
          name: Name of the run, for people.
          done: Updates that the run has behind it.
          num_updates: Updates of the whole run.
          batch_size: Images of an update.
          wandb_project: Project of Weights & Biases to log to; "" for none.

        Raises:
          ValueError: If there is a `wandb_project`, and wandb is not installed.
        """
        self._metrics = lines.of(folder / lines.METRICS)
        self._samples = folder / "samples"
        self._batch_size = batch_size
        self._folder, self._opened = folder, -1
        self._boards: list[Board] = []
        if parallel.is_main():
            folder.mkdir(parents=True, exist_ok=True)
            if not is_in_store(folder):
                # While it is open, no later folder has its number.
                self._opened = os.open(folder, os.O_RDONLY)
            self._metrics.drop_later(done)
            self._boards.append(_TensorBoard(folder, done))
            if wandb_project:
                self._boards.append(_WeightsAndBiases(folder, wandb_project, name))
        self._bar = Bar(
            name,
            num_updates * batch_size,
            done=done * batch_size,
            shown=parallel.is_main(),
        )

    def advance(self, updates: int) -> None:
        """Moves the progress bar."""
        self._bar.update(updates * self._batch_size)

    def check_folder(self) -> None:
        """Refuses to go on where the folder is not the one that was opened.

        Others would make it again, and leave half a run in it.

        Raises:
          FileNotFoundError: If it was removed or replaced.
          OSError: If it is in a store, and this run has lost its lease.
        """
        lease.check(self._folder)
        if self._opened >= 0 and not _is_open_at(self._opened, self._folder):
            raise FileNotFoundError(f"{self._folder} was removed while in use.")

    def say(self, text: str) -> None:
        """Prints a line above the progress bar."""
        if parallel.is_main():
            say(text)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Logs one line of metrics, with the time in seconds since the epoch."""
        if not parallel.is_main():
            return
        self.check_folder()
        line = {"step": step, "time": round(time.time(), 3), **values}
        self._metrics.append(to_json(line) + "\n")
        for board in self._boards:
            board.scalars(step, values)
        if "loss" in values:
            self._bar.note(_shown(values))

    def grid(self, step: int, images: UInt8[np.ndarray, " n h w c"]) -> None:
        """Saves a square of samples as `samples/<step>.png`."""
        if not parallel.is_main():
            return
        grid = tile(images, columns=int(np.ceil(np.sqrt(len(images)))))
        save_image(self._samples / f"{step:08d}.png", enlarge(grid))
        for board in self._boards:
            board.image(step, grid)

    def flush(self) -> None:
        """Puts what was logged where it is to lie; a checkpoint comes after it."""
        if parallel.is_main():
            self._metrics.flush()
            for board in self._boards:
                board.flush()

    def __enter__(self) -> "Records":
        """Returns itself: the files are open already."""
        return self

    def __exit__(self, *error: object) -> None:
        """Closes the bar and the boards."""
        self._bar.close()
        if self._opened >= 0:
            os.close(self._opened)
        for board in self._boards:
            board.close()
        if parallel.is_main():
            self._metrics.flush()


@runtime_checkable
class Board(Protocol):
    """A place that shows metrics and samples, beside the files of the run."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Shows metrics."""
        ...

    def image(self, step: int, image: UInt8[np.ndarray, " height width c"]) -> None:
        """Shows a grid of samples."""
        ...

    def flush(self) -> None:
        """Writes what is left so far."""
        ...

    def close(self) -> None:
        """Writes what is left."""
        ...


class _TensorBoard:
    def __init__(self, folder: pathlib.Path, done: int):
        self._folder, self._parts = folder / "tensorboard", 0
        self._scratch: pathlib.Path | None = None
        if is_in_store(folder):
            self._scratch = pathlib.Path(tempfile.mkdtemp(prefix="vdiff_jax-"))
        self._writer = self._open(purge_step=done + 1)

    def _open(self, **options: Any) -> Any:
        import tensorboardX  # here, because it imports torch, which takes seconds

        if self._scratch is not None:
            self._parts += 1
            options["filename_suffix"] = f".{os.getpid()}-{self._parts:06d}"
        return tensorboardX.SummaryWriter(str(self._scratch or self._folder), **options)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def image(self, step: int, image: UInt8[np.ndarray, " height width c"]) -> None:
        self._writer.add_image("samples", image, step, dataformats="HWC")

    def flush(self) -> None:
        if self._scratch is not None:  # an object cannot be appended to: parts of a log
            self._upload()
            self._writer = self._open()

    def close(self) -> None:
        if self._scratch is None:
            self._writer.close()
        else:
            self._upload()
            remove(self._scratch)

    def _upload(self) -> None:
        assert self._scratch is not None
        with naming(self._scratch):
            self._writer.close()
        for path in self._scratch.iterdir():
            write_bytes(self._folder / path.name, path.read_bytes())
            path.unlink()


class _WeightsAndBiases:
    def __init__(self, folder: pathlib.Path, project: str, name: str):
        try:
            self._wandb = importlib.import_module("wandb")
        except ImportError as error:
            raise ValueError(
                f"wandb_project={project!r} needs Weights & Biases: pip install"
                " 'vdiff_jax[wandb]', or leave wandb_project empty."
            ) from error
        place = None if is_in_store(folder) else str(folder)
        # The folder names the run, so that a resumed one goes on in the same.
        identity = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
        self._run = self._wandb.init(
            project=project, name=name, id=identity, resume="allow", dir=place
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def image(self, step: int, image: UInt8[np.ndarray, " height width c"]) -> None:
        # Pillow takes grey images without an axis of channels.
        shown = image[..., 0] if image.shape[-1] == 1 else image
        self._run.log({"samples": self._wandb.Image(shown)}, step=step)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self._run.finish()


def _is_open_at(opened: int, folder: pathlib.Path) -> bool:
    """True if an open folder is the one that is at a path now."""
    try:
        status = folder.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(opened), status)


def _shown(values: Mapping[str, float]) -> dict[str, str]:
    """The values that the progress bar shows beside images and time left."""
    names = {
        "loss": ("loss", ".4g"),
        "updates_per_second": ("updates/s", ".3g"),
        "device_memory_gib": ("GiB", ".1f"),
        "model_flops_utilization": ("MFU", ".1%"),
    }
    return {
        short: format(values[name], form)
        for name, (short, form) in names.items()
        if name in values
    }


class Curves(NamedTuple):
    """A metric of a run by update; values that are not finite are left out.

    Attributes:
      training: (update, value) on training data.
      held_out: The same on held-out data.
    """

    training: list[tuple[int, float]]
    held_out: list[tuple[int, float]]


def curves_of_loss(folder: pathlib.Path) -> dict[str, Curves]:
    """The loss of a run and its loss's other metrics by name, the loss first.

    Args:
      folder: Folder of the run.
    """
    path = folder / lines.METRICS
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    curves = {"loss": Curves([], [])}
    for line in text.splitlines():
        values: dict[str, Any] = json.loads(line)
        for name in values:
            if name in OF_THE_LOOP:
                continue
            metric = name.removeprefix(lines.HELD_OUT)
            curve = curves.setdefault(metric, Curves([], []))
            points = curve.training if name == metric else curve.held_out
            if values[name] is not None:  # null: not finite
                points.append((values["step"], values[name]))
    return curves
