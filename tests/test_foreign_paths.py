"""The whole path of a model of somebody else: a folder, imported, to a student, out.

Three kinds of folders, small and random: latent diffusion of classes (as on ImageNet,
with codes), a `DiTPipeline`, and a text-to-image model (as Stable Diffusion).
"""

import dataclasses
import json
import pathlib
import re
import shutil
from collections.abc import Callable

import diffusers
import numpy as np
import PIL.Image
import pytest
import safetensors.numpy
import torch

import conditional_nets
import dit_nets
import launch
import tiny
import vdiff_jax
from configs import import_model
from diffusers_nets import random_autoencoder
from vdiff_jax.from_config.starts import Starts
from vdiff_jax.generation.sampler import request
from vdiff_jax.interop.diffusers.folder import WEIGHTS

pytestmark = [
    pytest.mark.diffusers,
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
NUM, TOKENS, WIDTH, CLASSES = 4, 3, 12, 10
STEPS, W = 4, 1.5
SIZE = 8  # of the latents; images are of twice as many pixels
TABLE = conditional_nets.random(CLASSES + 1, WIDTH).astype(np.float32)
NULL = conditional_nets.random(TOKENS, WIDTH).astype(np.float32)
NULL_MASK = np.array([1, 1, 0], np.float32)
CONTEXTS = conditional_nets.random(NUM, TOKENS, WIDTH).astype(np.float32)
UNET = {  # of one level, for compiling is what takes long
    "sample_size": SIZE, "block_out_channels": (8,), "norm_num_groups": 4,
    "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of folder.

    Attributes:
      channels: Of the latents.
      save: Writes a folder.
      part: The folder of its autoencoder in it.
    """

    channels: int
    save: Callable[[pathlib.Path], object]
    part: str


def _save_class(folder):
    net = conditional_nets.random_net(**UNET, attention_head_dim=1)
    conditional_nets.save(net, folder, table=TABLE)
    random_autoencoder("of codes", scaling_factor=1.0).save_pretrained(folder / "vqvae")


def _save_dit(folder):
    net = dit_nets.random_net(out_channels=8)
    dit_nets.save(net, folder, conditional_nets.scheduler())
    random_autoencoder("of Gaussians").save_pretrained(folder / "vae")


def _save_text(folder):
    net = conditional_nets.random_net(**UNET, in_channels=4, out_channels=4)
    conditional_nets.save(net, folder, null=NULL, mask=NULL_MASK, tokens=TOKENS)
    random_autoencoder("of Gaussians").save_pretrained(folder / "vae")


KINDS = {
    "class": Kind(3, _save_class, "vqvae"),
    "dit": Kind(4, _save_dit, "vae"),
    "text": Kind(4, _save_text, "vae"),
}


@dataclasses.dataclass(frozen=True)
class Place:
    """A folder of somebody else, data for its model, and the workdirs made from it."""

    kind: Kind
    root: pathlib.Path

    @property
    def theirs(self) -> pathlib.Path:
        return self.root / "theirs"

    @property
    def teacher(self) -> pathlib.Path:
        """The workdir of the import."""
        return self.root / "imported"

    @property
    def workdir(self) -> pathlib.Path:
        """That of the model that predicts v, and of its students."""
        return self.root / "v"

    def launch(self, stage: str, workdir: pathlib.Path, **changes) -> None:
        launch.launch(self.config(stage, **changes), workdir)

    def config(self, stage: str, **changes):
        config = import_model.get_config(stage)
        config.update({name: tiny.TINY[name] for name in ("train", "distill")})
        config.update(
            {
                "data": {
                    "source": "npz", "path": str(self.root / "data"), "flip": False,
                    "held_out": 8, "workers": 0,
                },
                "sample": {
                    "num": NUM, "steps": STEPS, "batch_size": NUM,
                    "noise": str(self.root / "noise.npy"),
                },
                "evaluate": {
                    "num": 8, "steps": (1,), "reference_steps": 2, "repeats": 1,
                    "likelihood_num": 0, "features": ("pixels",), "samplers": ("ddim",),
                },
            }
        )  # fmt: skip
        if self.is_text:
            config.sample.context = str(self.root / "contexts.npz")
        config.update(changes)
        return config

    @property
    def is_text(self) -> bool:
        return self.kind.save is _save_text

    @property
    def is_dit(self) -> bool:
        return self.kind.save is _save_dit

    def noise(self) -> torch.Tensor:
        shape = (NUM, self.kind.channels, SIZE, SIZE)
        return torch.randn(shape, generator=torch.Generator().manual_seed(0))

    def vae(self):
        kind = diffusers.AutoencoderKL if self.kind.part == "vae" else diffusers.VQModel
        return kind.from_pretrained(self.theirs / self.kind.part)

    def decoded(self, x: torch.Tensor) -> np.ndarray:
        """Their images of latents x, by their autoencoder."""
        vae = self.vae()
        with torch.no_grad():
            images = vae.decode(x / vae.config.scaling_factor).sample
        images = (images / 2 + 0.5).clamp(0, 1).numpy().transpose(0, 2, 3, 1)
        return np.rint(255 * images).astype(int)


@pytest.fixture(scope="module", params=list(KINDS))
def place(request, tmp_path_factory):
    """A folder, and data of its latents."""
    kind = KINDS[request.param]
    place = Place(kind, tmp_path_factory.mktemp(request.param))
    place.theirs.mkdir()
    kind.save(place.theirs)
    _write_data(place)
    np.save(place.root / "noise.npy", place.noise().numpy().transpose(0, 2, 3, 1))
    np.savez(place.root / "contexts.npz", context=CONTEXTS)
    place.launch("import", place.teacher, source={"path": str(place.theirs)})
    return place


def _write_data(place):
    rng = np.random.default_rng(0)
    folder = place.root / "data"
    folder.mkdir()
    channels = place.kind.channels
    for split, count in (("train", 24), ("test", 8)):
        arrays = {"latents": rng.normal(size=(count, SIZE, SIZE, channels))}
        if place.kind.part == "vae":  # moments
            low = np.full(arrays["latents"].shape, -4.0)
            arrays["latents"] = np.concatenate([arrays["latents"], low], -1)
        if place.is_text:
            arrays["context"] = rng.normal(size=(count, TOKENS, WIDTH))
            arrays["mask"] = np.ones((count, TOKENS), bool)
        else:
            arrays["labels"] = np.arange(count) % CLASSES
        arrays = {
            name: x.astype(np.float32) if x.dtype == np.float64 else x
            for name, x in arrays.items()
        }
        np.savez(folder / f"{split}.npz", **arrays)


def _pngs(folder):
    paths = sorted(folder.glob("0*.png"))
    return np.stack([np.asarray(PIL.Image.open(path)) for path in paths]).astype(int)


def _latents(place, workdir, w=None):
    """x of our samples."""
    model = vdiff_jax.load(workdir)
    config = model.config.copy_and_resolve_references()
    config.sample.update({"num": NUM, "noise": str(place.root / "noise.npy")})
    if place.is_text:
        config.sample.context = str(place.root / "contexts.npz")
    starts = Starts(config, model.trained.model)
    start = starts.on_all(np.arange(NUM))
    drawn = starts.sampler.draw(model.params, start, request(STEPS, w=w))
    return np.asarray(model.trained.model.codec.to_x(drawn))


def _their_teacher(place, w):
    """x by their network and scheduler, guided by hand."""
    if place.is_dit:
        net = diffusers.DiTTransformer2DModel.from_pretrained(
            place.theirs / "transformer"
        )
    else:
        net = diffusers.UNet2DConditionModel.from_pretrained(place.theirs / "unet")

    def predicted(x, t, conditional):
        if place.is_dit:
            label = torch.arange(NUM) if conditional else torch.full((NUM,), CLASSES)
            output = net(x, t.expand(NUM), class_labels=label).sample
            return output[:, : place.kind.channels]
        mask = None
        if place.is_text:
            context = torch.from_numpy(CONTEXTS)
            if not conditional:
                context = torch.from_numpy(NULL).expand(NUM, -1, -1)
                mask = torch.from_numpy(NULL_MASK).expand(NUM, -1)
        else:
            rows = np.arange(NUM) if conditional else np.full(NUM, CLASSES)
            context = torch.from_numpy(TABLE[rows, None])
        return net(x, t, context, encoder_attention_mask=mask).sample

    scheduler = diffusers.DDIMScheduler.from_pretrained(place.theirs / "scheduler")
    scheduler.set_timesteps(STEPS)
    x = place.noise()
    with torch.no_grad():
        for t in scheduler.timesteps:
            output = predicted(x, t, conditional=True)
            if w:
                output = (1 + w) * output - w * predicted(x, t, conditional=False)
            x = scheduler.step(output, t, x).prev_sample
    return x


def _assert_same_images(ours, theirs):
    assert ours.shape == theirs.shape
    assert ours.std() > 10
    assert (np.abs(ours - theirs) <= 1).mean() >= 0.995


@pytest.mark.slow
@pytest.mark.parametrize("w", [None, W])
def test_an_imported_model_draws_the_images_of_their_parts(place, w):
    weights = () if w is None else (w,)
    place.launch("sample", place.teacher, sample={"w": weights})
    x = _their_teacher(place, w)
    theirs = x.numpy().transpose(0, 2, 3, 1)
    ours = _latents(place, place.teacher, w)
    images, their_images = _pngs(place.teacher / "sample"), place.decoded(x)
    # Of random networks latents are large, up to some 60.
    np.testing.assert_allclose(ours, theirs, atol=5e-6 * np.abs(theirs).max())
    assert images.shape == (NUM, 2 * SIZE, 2 * SIZE, 3)
    _assert_same_images(images, their_images)


@pytest.mark.slow
def test_a_folder_is_loaded_with_its_autoencoder(place):
    """Image number i of a seed is that of the workdir, guided too."""
    theirs, ours = vdiff_jax.load(place.theirs), vdiff_jax.load(place.teacher)
    options = {"steps": 2, "w": W, "context": CONTEXTS if place.is_text else None}
    images = theirs.sample(2, **options)
    assert images.shape == (2, 2 * SIZE, 2 * SIZE, 3)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images, ours.sample(2, **options))


V = {
    "model": {"output": "v", "computed_from": "eps"},
    "guide": {
        "steps": 4, "w_range": (0.0, 3.0), "w_features": 8, "batch_size": 8,
        "warmup_steps": 0, "steps_per_call": 2, "sample_steps": 2,
        "learning_rate": 0.1, "ema_decay": 0.0,  # so much that w matters
    },
    "distill": {**tiny.TINY["distill"], "start_steps": 4, "updates": "2",
                "learning_rate": 1e-3},
}  # fmt: skip


@pytest.fixture(scope="module")
def student(place):
    """The same place, with students of the model that predicts v."""
    train = {
        **tiny.TINY["train"], "init_from": str(place.teacher / "train"),
        "label_dropout": 0.2, "learning_rate": 1e-3, "ema_decay": 0.0,
    }  # fmt: skip
    own = {"train": train}
    for stage in ("train", "guide", "distill"):
        place.launch(stage, place.workdir, **{**V, **own})
    return place


@pytest.mark.long
def test_what_goes_on_from_an_import_is_converted_guided_and_distilled(student):
    place = student
    result = json.loads((place.workdir / "train" / "result.json").read_text())
    assert result["output"] == ["eps", "v"]
    place.launch("sample", place.workdir, **V, sample={"w": (W,), "steps": 1})
    assert _pngs(place.workdir / "sample").shape == (NUM, 2 * SIZE, 2 * SIZE, 3)
    place.launch("evaluate", place.workdir, **V, evaluate={"w": (W,)})
    rows = json.loads((place.workdir / "evaluate" / "ladder.json").read_text())
    assert {(row["model"], row["w"]) for row in rows} == {
        (model, W) for model in ("base", "guided", "distilled")
    }
    assert {row["metric"] for row in rows} >= {"frechet_pixels"}


@pytest.mark.long
@pytest.mark.parametrize("num_steps", [2, 1])
def test_a_student_is_drawn_by_their_parts(student, num_steps, tmp_path):
    place = student
    options = {"formats": ("diffusers",), "steps": num_steps}
    if place.is_dit:
        options["w"] = (W,)
    place.launch("export", place.workdir, **V, export=options)
    folder = place.workdir / "export" / f"distilled-{num_steps}step" / "diffusers"
    place.launch("sample", place.workdir, **V, sample={"w": (W,), "steps": num_steps})
    ours = _pngs(place.workdir / "sample")
    theirs = _their_student(place, folder, num_steps)
    _assert_same_images(ours, theirs)


def _their_student(place, folder, num_steps):
    if place.is_dit:
        pipeline = diffusers.DiTPipeline.from_pretrained(folder)
        pipeline.set_progress_bar_config(disable=True)
        images = pipeline(
            class_labels=list(range(NUM)), guidance_scale=1.0, output_type="np",
            generator=torch.Generator().manual_seed(0), num_inference_steps=num_steps,
        ).images  # fmt: skip
        return np.rint(255 * images).astype(int)
    if not place.is_text:
        (script,) = re.findall(
            "```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL
        )
        script = script.replace("path/of/this/folder", str(folder))
        script = script.replace("[0, 1]", str(list(range(NUM))))
        script = script.replace("w, half = 1.0", f"w, half = {W}")
        variables: dict = {}
        exec(script, variables)
        return place.decoded(variables["x"])
    pytest.importorskip("transformers")
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        folder,
        vae=place.vae(),
        **dict.fromkeys(
            ("text_encoder", "tokenizer", "safety_checker", "feature_extractor")
        ),
    )
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        prompt_embeds=torch.from_numpy(CONTEXTS), latents=place.noise(),
        num_inference_steps=num_steps, guidance_scale=1 + W, output_type="np",
    ).images  # fmt: skip
    return np.rint(255 * images).astype(int)


REFUSED_IMPORTS = {
    "an autoencoder of other channels": (
        lambda folder: _autoencoder(folder, latent_channels=8),
        r"vae has latents of 8 channels, and the network takes 4",
    ),
    "an autoencoder of another scale": (
        lambda folder: _autoencoder(folder, scaling_factor=0.5),
        r"data\.latent_scale=0\.18215, but scaling_factor=0\.5",
    ),
    "an autoencoder in a pickle": (
        lambda folder: (folder / "vae" / WEIGHTS).rename(
            folder / "vae" / "diffusion_pytorch_model.bin"
        ),
        r"python -c .*torch\.load\('diffusion_pytorch_model\.bin', weights_only=True",
    ),
    "a network in a pickle": (
        lambda folder: (folder / "unet" / WEIGHTS).rename(
            folder / "unet" / "diffusion_pytorch_model.bin"
        ),
        r"python -c .*torch\.load\('diffusion_pytorch_model\.bin', weights_only=True",
    ),
    "a null context of another width": (
        lambda folder: _null_context(folder, np.zeros((TOKENS, WIDTH + 1))),
        rf"has shape \({TOKENS}, {WIDTH + 1}\), and this network needs",
    ),
    "a mask of another length": (
        lambda folder: _null_context(folder, NULL, np.ones(TOKENS + 1)),
        rf"null_mask of .* has shape \({TOKENS + 1},\), and this network needs",
    ),
}


def _autoencoder(folder, **options):
    net = random_autoencoder("of Gaussians", **options)
    net.save_pretrained(folder / "vae")


def _null_context(folder, context, mask=None):
    tensors = {"context": context} | ({} if mask is None else {"mask": mask})
    safetensors.numpy.save_file(tensors, folder / "null_context.safetensors")


@pytest.fixture(scope="module")
def of_text(tmp_path_factory):
    """A text-to-image folder."""
    folder = tmp_path_factory.mktemp("of_text") / "theirs"
    folder.mkdir()
    _save_text(folder)
    return folder


@pytest.mark.parametrize("case", REFUSED_IMPORTS)
def test_what_does_not_fit_is_not_imported(case, of_text, tmp_path):
    spoil, message = REFUSED_IMPORTS[case]
    folder = shutil.copytree(of_text, tmp_path / "theirs")
    spoil(folder)
    config = import_model.get_config("import")
    config.update({"source": {"path": str(folder)}, "data": {"latent_scale": 0.18215}})
    with pytest.raises(ValueError, match=message):
        launch.launch(config, tmp_path / "workdir")
    assert not list((tmp_path / "workdir").glob("*/result.json"))


@pytest.fixture(scope="module")
def without_null(of_text, tmp_path_factory):
    """The workdir of a text-to-image model without what stands for no text."""
    root = tmp_path_factory.mktemp("without_null")
    folder = shutil.copytree(of_text, root / "theirs")
    (folder / "null_context.safetensors").unlink()
    place = Place(KINDS["text"], root)
    _write_data(place)
    np.savez(root / "contexts.npz", context=CONTEXTS)
    np.save(root / "noise.npy", place.noise().numpy().transpose(0, 2, 3, 1))
    place.launch("import", place.teacher, source={"path": str(folder)})
    return place


ADD_THE_FILE = r"cannot be guided: .*Put null_context\.safetensors, with the embedding"


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("sample", {"sample": {"w": (W,)}}),
        ("guide", {"guide": {"steps": 4, "batch_size": 8}}),
        ("evaluate", {"evaluate": {"w": (0.0, W)}}),
    ],
)
def test_guidance_without_a_null_context_asks_for_the_file(
    stage, changes, without_null, tmp_path
):
    workdir = shutil.copytree(without_null.teacher, tmp_path / "workdir")
    with pytest.raises(ValueError, match=ADD_THE_FILE):
        without_null.launch(stage, workdir, **changes)
    with pytest.raises(ValueError, match=ADD_THE_FILE):
        vdiff_jax.load(without_null.theirs).sample(1, context=CONTEXTS, w=W, steps=1)


def test_contexts_are_not_left_out_for_nothing(without_null, tmp_path):
    train = {**tiny.TINY["train"], "init_from": str(without_null.teacher / "train")}
    message = "neither the model in .* nor the data have no null context"
    with pytest.raises(ValueError, match=message):
        without_null.launch(
            "train", tmp_path, train={**train, "label_dropout": 0.1}, model=V["model"]
        )


@pytest.mark.parametrize(
    ("shape", "mask", "message"),
    [
        ((TOKENS, WIDTH + 1), None, rf"an \.npz with context \[n, {TOKENS}, {WIDTH}\]"),
        ((TOKENS + 1, WIDTH), None, rf"an \.npz with context \[n, {TOKENS}, {WIDTH}\]"),
        ((TOKENS, WIDTH), TOKENS + 1, "a value for each vector of each context"),
    ],
)
def test_contexts_of_another_form_are_not_drawn_for(
    shape, mask, message, without_null, tmp_path
):
    path = tmp_path / "contexts.npz"
    arrays = {"context": np.zeros((NUM, *shape))}
    if mask:
        arrays["mask"] = np.ones((NUM, mask), bool)
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=message):
        without_null.launch(
            "sample", without_null.teacher, sample={"context": str(path)}
        )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("configs/import_model.py:sample", "--config.sample.w=1"),
            "cannot be guided: its contexts were never left out",
        ),
        (
            ("configs/import_model.py:sample", "--config.data.autoencoder=nowhere"),
            "data.autoencoder='nowhere'",
        ),
        (
            (
                "configs/cin256.py:evaluate", "--config.evaluate.w=1",
                "--workdir=runs/none",
            ),
            "set data.autoencoder to the folder",
        ),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_status_2(
    words, message, without_null, capsys, monkeypatch
):
    monkeypatch.setattr(launch.parallel, "use_cores", lambda sizes: None)
    config, *others = words
    if not any("workdir" in word for word in others):
        others.append(f"--workdir={without_null.teacher}")
    status = launch.main(["launch.py", "--config", config, *others])
    lines = capsys.readouterr().err.splitlines()
    lines = [line for line in lines if not line.startswith("config: ")]
    assert status == 2
    assert len(lines) == 1
    assert message in lines[0]
