r"""The path of latents and of contexts, as a user goes it, and what comes of it.

    tar -xJf cifar10-jpeg.tar.xz -C cifar10
    python -m benchmarks.latents --data cifar10 --out runs/latents

`--data` is a folder of train/<class>/ and test/<class>/ of 32x32 JPEG or PNG files.
Three parts, each of which can be had alone by --part:

    digits      handwritten digits by contexts of captions, in pixels; needs no --data
    classes     an autoencoder of diffusers, trained here; then, by our commands only:
                prepare --encode, train, guide, distill, evaluate, sample
    contexts    the same latents by contexts of captions in the place of classes; its
                images are judged by the classifier of the part before

A part that was interrupted goes on. It prints a table, and writes latents.json and
images to --out. Needs the extra `bench`.
"""

import argparse
import json
import pathlib
import shutil
import time
from collections.abc import Sequence
from typing import Any

import flax.serialization
import numpy as np
import PIL.Image

from benchmarks import captions, small_autoencoder
from benchmarks.commands import launch, run
from configs import cifar10_latents
from vdiff_jax.datasets.digits import digits
from vdiff_jax.evaluation import classifier
from vdiff_jax.from_config.model import make_codec
from vdiff_jax.generation.grids import enlarge, save_image, tile

DIGITS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
)  # fmt: skip
NUM = 1000
PARTS = ("digits", "classes", "contexts")


def main() -> None:
    """Goes the parts, and prints what was measured."""
    options = _parse()
    options.out.mkdir(parents=True, exist_ok=True)
    report = options.out / "latents.json"
    for part in options.part:
        if part != "digits" and options.data is None:
            raise SystemExit(f"--part {part} needs --data, a folder of photographs.")
        start = time.perf_counter()
        result = RUN[part](options.data, options.out)
        results = json.loads(report.read_text()) if report.exists() else {}
        before = results.get(part, {}).get("seconds", 0.0)
        result["seconds"] = before + time.perf_counter() - start
        results[part] = result
        report.write_text(json.dumps(results, indent=2))
        print(json.dumps({part: result}, indent=2))


def of_digits(data: pathlib.Path | None, out: pathlib.Path) -> dict[str, Any]:
    """Digits by captions: no autoencoder, and no prepare, for they are arrays."""
    del data
    folder = out / "digits-captions"
    folder.mkdir(exist_ok=True)
    table = captions.table(DIGITS)
    for split in ("train", "test"):
        real = digits(split)
        row = captions.row_of(real.labels, _templates(len(real)))
        np.savez(
            folder / f"{split}.npz",
            images=real.images,
            labels=real.labels,
            context=table["contexts"][row],
            mask=table["masks"][row],
            null_context=table["null_context"],
            null_mask=table["null_mask"],
        )
    workdir = out / "digits"
    launch("digits_contexts", workdir, {"data.path": folder})
    return {**_rows(workdir), **_prompted("digits_contexts", workdir, DIGITS, workdir)}


def of_classes(data: pathlib.Path, out: pathlib.Path) -> dict[str, Any]:
    """Photographs by class, in the latents of an autoencoder that is trained here."""
    autoencoder = _autoencoder(data, out)
    latents, workdir = out / "latents", out / "classes"
    prepare(data, latents, "--encode", autoencoder, "--mirror")
    fields = {
        "data.path": latents, "data.autoencoder": autoencoder, "evaluate.images": data,
    }  # fmt: skip
    launch("cifar10_latents", workdir, fields)
    launch("cifar10_latents:sample", workdir, {"sample.steps": 4})
    launch("cifar10_latents:export", workdir, {"export.steps": 4})
    _reconstructions(data, autoencoder, out)
    _figure(workdir, out / "classes.png")
    return _rows(workdir)


def of_contexts(data: pathlib.Path, out: pathlib.Path) -> dict[str, Any]:
    """The same photographs by captions."""
    autoencoder = _autoencoder(data, out)
    latents, workdir = out / "captions", out / "contexts"
    names = sorted(path.name for path in (data / "train").iterdir())
    _write_captions(data, names, out / "captions.npz")
    prepare(
        data, latents, "--encode", autoencoder, "--mirror",
        "--context", out / "captions.npz",
    )  # fmt: skip
    fields = {
        "data.path": latents, "data.autoencoder": autoencoder, "evaluate.images": data,
    }  # fmt: skip
    launch("cifar10_contexts", workdir, fields)
    _figure(workdir, out / "contexts.png")
    shares = _prompted("cifar10_contexts", workdir, names, out / "classes")
    return {**_rows(workdir), **shares}


RUN = {"digits": of_digits, "classes": of_classes, "contexts": of_contexts}


def prepare(data: pathlib.Path, out: pathlib.Path, *flags: object) -> None:
    """Encodes both splits of a folder."""
    splits = ("--splits", "train", "test", "--size", "32")
    run("-m", "vdiff_jax.datasets.prepare", data, "--out", out, *splits, *flags)


def _autoencoder(data: pathlib.Path, out: pathlib.Path) -> pathlib.Path:
    """The folder of an autoencoder of the photographs, which is trained if need be."""
    folder = out / "vae"
    if not (folder / "config.json").exists():
        small_autoencoder.train(_read(_files(data, "train")), folder)
    return folder


def _files(data: pathlib.Path, split: str) -> list[pathlib.Path]:
    return sorted(path for path in (data / split).glob("*/*") if path.is_file())


def _read(paths: Sequence[pathlib.Path]) -> np.ndarray:
    return np.stack([np.asarray(PIL.Image.open(path)) for path in paths])


def _templates(num: int) -> np.ndarray:
    """A caption's template for each example, by chance."""
    return np.random.default_rng(0).integers(len(captions.TEMPLATES), size=num)


def _write_captions(
    data: pathlib.Path, names: Sequence[str], path: pathlib.Path
) -> None:
    """The contexts of all images by their names, for `prepare --context`."""
    if path.exists():
        return
    files = [*_files(data, "train"), *_files(data, "test")]
    label = np.array([names.index(file.parent.name) for file in files])
    np.savez(
        path,
        names=np.array([str(file.relative_to(data)) for file in files]),
        index=captions.row_of(label, _templates(len(files))),
        **captions.table(names),
    )


def _rows(workdir: pathlib.Path) -> dict[str, Any]:
    """What the evaluate stage measured."""
    folder = workdir / "evaluate"
    rows = json.loads((folder / "ladder.json").read_text())
    facts = json.loads((folder / "reference.json").read_text())
    return {"rows": rows, "reference": facts}


def _prompted(
    config: str, workdir: pathlib.Path, names: Sequence[str], judged_in: pathlib.Path
) -> dict[str, float]:
    """The classes of images that were drawn for right prompts and for wrong ones.

    Args:
      config: The name of the config.
      workdir: The project.
      names: Names of the classes.
      judged_in: The project whose evaluation has trained the judge.
    """
    (path,) = (judged_in / "evaluate" / "reference").glob("judge-*.msgpack")
    params = flax.serialization.msgpack_restore(path.read_bytes())["params"]
    shares = {}
    for shift in (0, 1):
        prompts = workdir / f"prompts_{shift}.npz"
        np.savez(prompts, **captions.prompts(names, NUM, shift))
        fields = {"sample.context": prompts, "sample.num": NUM, "sample.steps": 4}
        launch(f"{config}:sample", workdir, fields)
        images = _read(sorted((workdir / "sample").rglob("[0-9]*.png")))
        images = images.reshape(*images.shape[:3], -1)
        guess = np.asarray(classifier.judge(params, images)).argmax(axis=1)
        asked = (np.arange(NUM) + shift) % len(names)
        shares[f"prompts + {shift}: of the prompted class"] = _share(guess == asked)
        unshifted = np.arange(NUM) % len(names)
        shares[f"prompts + {shift}: of the class before"] = _share(guess == unshifted)
        sheet = enlarge(tile(images[: 5 * len(names)], len(names)))
        save_image(workdir.parent / f"{workdir.name}_{shift}.png", sheet)
    return shares


def _share(right: np.ndarray) -> float:
    return round(float(right.mean()), 4)


def _reconstructions(
    data: pathlib.Path, autoencoder: pathlib.Path, out: pathlib.Path
) -> None:
    """A sheet: rows of photographs, and below each what the autoencoder makes of it."""
    config = cifar10_latents.get_config()
    config.data.autoencoder = str(autoencoder)
    codec = make_codec(config)
    images = _read(_files(data, "test")[::200][:48])
    encoded = codec.of_images(images)[..., : config.data.channels]
    decoded = codec.to_images(encoded)
    rows = np.stack([images.reshape(3, 16, 32, 32, 3)] * 2, axis=1)
    rows[:, 1] = decoded.reshape(3, 16, 32, 32, 3)
    sheet = tile(rows.reshape(-1, 32, 32, 3), 16)
    save_image(out / "reconstructions.png", enlarge(sheet, 300))


def _figure(workdir: pathlib.Path, path: pathlib.Path) -> None:
    """The images of every model by its guidance weight, of the same noise."""
    shutil.copy(workdir / "evaluate" / "guidance.png", path)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, default="runs/latents")
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
