"""What an evaluation leaves on disk: its rows, and the first images of each.

While it is at work both go to `parts/`, and what an earlier evaluation left stays as it
is; `finish` puts the new in its place.
"""

import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from vdiff_jax import parallel
from vdiff_jax.evaluation.measurement import Measurement, read_rows
from vdiff_jax.files.atomic import replacing, write_json
from vdiff_jax.files.fingerprints import DamagedError
from vdiff_jax.files.place import remove_tree
from vdiff_jax.stages.evaluate.candidates import Candidate, candidate_of

# Names of the files of kept images, at any version: at first they had no key.
OURS = re.compile(
    r"(base|guided|distilled)-[a-z0-9_]+-\d{4,}(-w[0-9.e+-]+?)?(-[0-9a-f]{16})?\.npy"
)


class Records:
    """The files of an evaluation.

    Attributes:
      out: The folder.
    """

    def __init__(self, out: pathlib.Path):
        """Reads the rows of an earlier evaluation, and of one under way.

        Raises:
          DamagedError: If they cannot be read.
        """
        self.out, self._parts = out, out / "parts"
        self._before = [
            row
            for path in (self.out / "ladder.json", self._parts / "ladder.json")
            for row in read_rows(path)
        ]

    def rows_of(self, key: str) -> list[Measurement]:
        """The rows of a key that were there before."""
        # Of a row that both files have, the one of the evaluation under way.
        return list(
            {row.metric: row for row in self._before if row.key == key}.values()
        )

    def path_of_part(self, key: str, seed: int, first: int) -> pathlib.Path:
        """Where a part of the images of a seed is kept.

        Args:
          key: Of the rows that it is for.
          seed: The seed.
          first: The number of its first image.
        """
        return self._parts / key / f"{seed}-{first:08d}.npz"

    def has_images(self, candidate: Candidate, key: str) -> bool:
        """True if the first images of a candidate are there."""
        return self._path_of_images(candidate, key).exists()

    def save_images(self, candidate: Candidate, key: str, images: np.ndarray) -> None:
        """Keeps the first images of a candidate."""
        if parallel.is_main():
            path = self._path_of_images(candidate, key)
            with replacing(path) as half, half.open("wb") as file:
                np.save(file, images)

    def images_of(self, row: Measurement) -> np.ndarray:
        """The first images of a candidate, of those that a row is about.

        Raises:
          DamagedError: If their file cannot be read.
        """
        path = self._path_of_images(candidate_of(row), row.key)
        try:
            with path.open("rb") as file:
                return np.load(file, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DamagedError(
                f"{path} cannot be read ({error}): remove it, and it is drawn again."
            ) from error

    def keep(self, rows: Sequence[Measurement]) -> None:
        """Keeps the rows of an evaluation under way, for the command to go on from."""
        if parallel.is_main():
            _write_rows(self._parts, rows)
            for key in {row.key for row in rows}:
                # With its rows, its parts are not needed any more.
                remove_tree(self._parts / key)

    def finish(self, rows: Sequence[Measurement], facts: list[dict[str, Any]]) -> None:
        """Writes ladder.json and reference.json; removes what was of other rows.

        Args:
          rows: All rows of the evaluation.
          facts: What they were measured with.
        """
        if not parallel.is_main():
            return
        write_json(self.out / "reference.json", facts)
        _write_rows(self.out, rows)
        remove_tree(self._parts)
        kept = {self._path_of_images(candidate_of(row), row.key) for row in rows}
        for path in (self.out / "pictures").iterdir():
            if path not in kept and OURS.fullmatch(path.name):
                path.unlink()

    def _path_of_images(self, candidate: Candidate, key: str) -> pathlib.Path:
        return self.out / "pictures" / f"{candidate}-{key}.npy"


def _write_rows(folder: pathlib.Path, rows: Sequence[Measurement]) -> None:
    write_json(folder / "ladder.json", [row.to_json() for row in rows])
