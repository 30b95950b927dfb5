r"""A model of diffusers becomes a sampler of 4 steps of diffusers, by way of ours.

    python -m benchmarks.roundtrip --out runs/roundtrip

A `UNet2DModel` learns eps of the digits in a training loop of torch, as diffusers'
documentation has it. Then, by our command: import, train on to v, distill 64 -> 4,
export. Stock diffusers draws, and an independent classifier judges whether each image
is of the class that was asked for. Needs the extra `bench`; 8 minutes on 2 cores.
"""

import argparse
import json
import pathlib
import subprocess
import sys

import diffusers
import numpy as np
import PIL.Image
import torch

from vdiff_jax.datasets.digits import digits
from vdiff_jax.datasets.reader import Reader
from vdiff_jax.datasets.source import Arrays
from vdiff_jax.evaluation import classifier, features, frechet, moments
from vdiff_jax.generation.grids import enlarge, tile

UPDATES, BATCH_SIZE, NUM = 1500, 64, 1000


def main() -> None:
    """Trains, converts, draws, measures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default="runs/roundtrip")
    out = parser.parse_args().out
    train(digits("train")).save_pretrained(out / "theirs")
    launch("import_model:import", out / "eps", "source.path", out / "theirs")
    launch("digits:train", out / "v", "train.init_from", out / "eps" / "train")
    launch("digits:distill", out / "v", "distill.updates", "300, 4: 1000")
    launch("digits:export", out / "v", "export.formats", "('diffusers',)")
    measure(out)


def train(real: Arrays) -> diffusers.DDPMPipeline:
    """Their model, after their loop."""
    torch.manual_seed(0)
    net = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(32, 48),
        layers_per_block=1, norm_num_groups=8, attention_head_dim=None,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), num_class_embeds=10,
    )  # fmt: skip
    scheduler = diffusers.DDPMScheduler()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, UPDATES)
    data = torch.from_numpy(real.images.transpose(0, 3, 1, 2)).float() / 127.5 - 1.0
    classes = torch.from_numpy(real.labels)
    for _ in range(UPDATES):
        rows = torch.randint(len(data), (BATCH_SIZE,))
        noise = torch.randn(BATCH_SIZE, 1, 8, 8)
        steps = torch.randint(scheduler.config.num_train_timesteps, (BATCH_SIZE,))
        noisy = scheduler.add_noise(data[rows], noise, steps)
        eps_hat = net(noisy, steps, class_labels=classes[rows]).sample
        loss = torch.nn.functional.mse_loss(eps_hat, noise)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        decay.step()
    return diffusers.DDPMPipeline(net.eval(), scheduler)


def launch(config: str, workdir: pathlib.Path, field: str, value: object) -> None:
    """Runs a stage of ours, with the fields that all of them have, and one more.

    Args:
      config: The name of a config and its stage, like "digits:train".
      workdir: The folder of the project.
      field: The path of the field.
      value: Its value.
    """
    fields = {
        "train.steps": 1500, "train.batch_size": 64, "train.warmup_steps": 50,
        "train.learning_rate": 5e-4, "train.decay": "constant", "train.ema_decay": 0.99,
        "train.stratified_times": False,
        "distill.start_steps": 64, "distill.end_steps": 4, "export.steps": 4,
        field: value,
    }  # fmt: skip
    name, stage = config.split(":")
    command = [sys.executable, "launch.py", f"--config=configs/{name}.py:{stage}"]
    flags = [f"--config.{path}={value}" for path, value in fields.items()]
    subprocess.run([*command, f"--workdir={workdir}", *flags], check=True)


def measure(out: pathlib.Path) -> None:
    """Judges the images of stock diffusers: accuracy, distance, and a sheet of them."""
    train, test = digits("train"), digits("test")
    known = Reader(train), Reader(test)
    judge = classifier.train(*known, kind="judge", seed=1)
    features_of = features.of_classifier(classifier.train(*known)).extract
    real = frechet.with_root(moments.moments(features_of(train.images).pooled))
    folder = out / "v" / "export" / "distilled-4step" / "diffusers"
    drawn = {
        "their DDIM, 64 steps": draw(out / "theirs", 64),
        "their DDIM, 4 steps": draw(out / "theirs", 4),
        "exported student, 4 steps": draw(folder, 4),
    }
    rows = []
    for name, images in drawn.items():
        guess = np.asarray(classifier.judge(judge.params, images)).argmax(axis=1)
        distance = frechet.frechet_distance(
            moments.moments(features_of(images).pooled), real
        )
        accuracy = float((guess == np.arange(NUM) % 10).mean())
        rows.append(
            {"of": name, "accuracy": accuracy, "frechet": float(distance.value)}
        )
        print(f"{name}: accuracy {accuracy:.1%}, distance {distance.value:.2f}")
        sheet = enlarge(tile(images[:40], 10))
        PIL.Image.fromarray(np.squeeze(sheet)).save(out / f"{name}.png")
    print(f"the judge is right on {judge.accuracy:.1%} of held-out digits")
    (out / "roundtrip.json").write_text(json.dumps(rows, indent=2))


def draw(folder: pathlib.Path, num_steps: int) -> np.ndarray:
    """Images of classes 0, 1, ..., 9, 0, ... by diffusers, uint8."""
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    classes = [i % 10 for i in range(NUM)]
    if isinstance(pipeline, diffusers.ConsistencyModelPipeline):
        images = pipeline(
            batch_size=NUM,
            num_inference_steps=num_steps,
            class_labels=classes,
            generator=generator,
            output_type="np",
        ).images
    else:  # DDPMPipeline passes no classes: their loop, by hand
        scheduler = diffusers.DDIMScheduler(timestep_spacing="trailing")
        scheduler.set_timesteps(num_steps)
        z = torch.randn(NUM, 1, 8, 8, generator=generator)
        with torch.no_grad():
            for step in scheduler.timesteps:
                output = pipeline.unet(z, step, class_labels=torch.tensor(classes))
                z = scheduler.step(
                    output.sample, step, z, use_clipped_model_output=True
                ).prev_sample
        images = (z / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    return (255 * images).round().astype(np.uint8)


if __name__ == "__main__":
    main()
