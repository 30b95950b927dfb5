"""The names of a model's classes: its run, or one that it comes from, noted them."""

import pathlib

from vdiff_jax.distillation.role import BASE
from vdiff_jax.files.place import path_of
from vdiff_jax.interop import model_file
from vdiff_jax.workdir import layout
from vdiff_jax.workdir.trained import Trained

# A student of a student of ...: the longest chain of teachers that is followed.
MOST_TEACHERS = 32


def class_names(trained: Trained) -> tuple[str, ...]:
    """The names in the order of the classes' numbers; empty if nothing knows them."""
    if trained.folder.is_file():
        return tuple(model_file.read_about(trained.folder).facts.get("classes", ()))
    folder: pathlib.Path | None = trained.folder
    for _ in range(MOST_TEACHERS):
        if folder is None:
            break
        result = layout.result(folder) or {}
        place = layout.role_of_folder(folder)
        if not result.get("classes") and place is not None:
            base = layout.folder_of(place[0], BASE)
            result = {**result, "classes": (layout.result(base) or {}).get("classes")}
        if result.get("classes"):
            return tuple(result["classes"])
        if place is not None and place[1] == BASE:
            break  # with `train.init_from` it may be of other data than its teacher
        teacher = result.get("teacher")
        folder = None if teacher is None else path_of(teacher)
    return ()
