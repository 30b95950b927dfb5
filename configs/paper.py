"""What the paper's four data sets share. The other files say where they differ.

Salimans & Ho (2022), arXiv:2202.00512, and, where the text is silent, their published
code. Two things differ from both, in every config:

- `model.output` is "v". The paper takes x for CIFAR-10 and both for the others; each
  is one override away: --config.model.output=x
- Gradients are clipped after they are averaged over devices. The published code clips
  each device's own, so that its result depends on how many there are.
"""

from ml_collections import ConfigDict


def get_config(stage: str = "all") -> ConfigDict:
    """The shared settings; `data` and the sizes in `model` are yet to be set."""
    loop = {
        "grad_clip": 1.0,
        "stratified_times": False,
        "noise_offset": 0.0,  # > 0: noise that whole channels share, added to the noise
        "grad_accum_steps": 1,  # parts of a batch, where it does not fit
        "on_nonfinite": "stop",  # stop, skip
        "steps_per_call": 10,
        "log_every_steps": 100,
        "eval_every_steps": 10_000,
        "sample_every_steps": 10_000,
        "checkpoint_every_steps": 5000,
        "checkpoint_every_minutes": 30.0,  # and by the clock; 0: never
        "keep_checkpoints": 2,  # the newest
        "keep_every_steps": 0,  # and those of multiples of this
        "keep_best": 0,  # and so many of the lowest held-out loss
    }
    onward = {  # of the stages that go on from trained weights, but for the ladder's
        "batch_size": 2048,
        "learning_rate": 1e-4,
        "warmup_steps": 1000,
        "decay": "constant",
        "weight_decay": 0.0,
        "ema_decay": 0.9999,
        **loop,
    }
    config = ConfigDict(
        {
            "stage": stage,
            "seed": 0,
            "profile": 0,  # updates to trace; set by --profile
            "wandb_project": "",  # also logs to Weights & Biases; needs the extra
            "model": {
                "net": "unet",  # or your own, "package.module:make_net"
                "convention": "",  # of your own: edm, v_diffusion, flow, ddpm; "": ours
                "output": "v",  # x, eps, v, both
                "computed_from": "",  # what the network says itself, if not that
                "channels": 256,
                "multipliers": (1, 1, 1),
                "num_blocks": 3,
                "attention_resolutions": (8, 16),
                "num_heads": 0,  # one of these two
                "head_dim": 64,
                "emb_channels": 1024,
                "groups": 32,
                "num_classes": 0,  # 0: unconditional
                "patch": 1,
                "logsnr_input": "inv_cos",  # inv_cos, linear, sigmoid
                "timesteps": "",  # or the step's number in this chain of `diffusion`
                "style": "salimans_ho",  # salimans_ho, ddpm, adm
                "unet": "",  # a U-Net in full, as import writes it
                "resample_in_block": True,
                "dtype": "float32",  # or bfloat16; targets and losses stay float32
            },
            "diffusion": {
                # cosine, linear_beta, scaled_linear_beta, squared_cosine_beta, betas
                "schedule": "cosine",
                "logsnr_min": -20.0,
                "logsnr_max": 20.0,
                "beta_first": 1e-4,
                "beta_last": 0.02,
                "num_train_steps": 1000,
                "betas": (),  # each of them, for a schedule of that name
            },
            "data": {
                # folder, lmdb, npz, tfds, cifar10, digits; or your own,
                # "package.module:make_source". docs/data.md tells them apart.
                "source": "tfds",
                "name": "",  # of a TFDS data set
                "path": "data",
                "train_split": "train",
                "test_split": "test",
                "held_out_fraction": 0.0,  # > 0: test is this part of the train split
                "image_size": 32,
                "channels": 3,
                "resize": "area",  # area, bilinear, lanczos: of a centre crop; pad
                "latent_scale": 0.0,  # > 0: the data are latents; x = this * latent
                "flip": True,
                "held_out": 1024,  # pictures for the held-out loss
                "on_device": "auto",  # auto: up to 1 GiB; always, never
                "workers": 4,
                "worker_timeout": 300.0,  # seconds until a worker is taken for hung
            },
            "parallel": {
                "fsdp": 1,  # devices that share one copy of parameters and optimizer
                "remat": False,  # compute blocks again in the gradient, for memory
            },
            "train": {
                "steps": 800_000,
                "num_steps": 0,  # 0: continuous time; N: the times i / N
                "sample_steps": 256,
                "dropout": 0.1,
                "batch_size": 2048,
                "learning_rate": 3e-4,
                "warmup_steps": 1000,
                "decay": "constant",  # constant, linear, cosine
                "weight_decay": 0.0,
                "ema_decay": 0.9999,
                "weight": "snr_trunc",  # constant, snr, snr_plus_one, min_snr:GAMMA
                "init_from": "",  # a train folder whose weights to go on from
                "label_dropout": 0.1,  # of classes, if there are any; for guidance
                **loop,
            },
            "guide": {
                "steps": 0,  # updates; 0: no such stage, and no w for the students
                "teacher": "",  # "": the train stage of the same workdir
                "w_min": 0.0,
                "w_max": 4.0,
                "w_features": 256,  # width of the sinusoid of w
                "w_scale": 1000.0,  # and the angle of w = 1 in it
                "rescale": 0.0,  # > 0: the teacher's guidance is rescaled by this
                "sample_steps": 256,
                "weight": "snr_trunc",
                **onward,
            },
            "distill": {
                # "": the guide stage of the same workdir, if there is one, or train
                "teacher": "",
                "ladder": "deterministic",  # deterministic, stochastic, encode
                "start_steps": 1024,
                "end_steps": 1,
                "updates": "50000, 2: 100000, 1: 100000",
                "batch_size": 2048,
                "learning_rate": 1e-4,
                "warmup_steps": 0,
                "decay": "linear",
                "weight_decay": 0.0,
                "ema_decay": 0.0,
                "weight": "snr_trunc",
                **loop,
            },
            "source": {  # of import
                "kind": "diffusers",  # diffusers, released, safetensors, function
                "path": "",
                "output": "x",  # what a released network says, if not both
            },
            "export": {
                "formats": ("safetensors",),  # orbax, diffusers, stablehlo
                "model": "auto",  # auto, base, guided, distilled
                "steps": 4,
                "w": (),  # the strength that is folded in, for diffusers
            },
            "sample": {
                "from_file": "",  # a .safetensors of export; in commands sample.from
                "model": "auto",  # auto, base, distilled
                "steps": 4,
                "num": 64,
                "seed": 0,
                "batch_size": 64,
                "labels": (),  # classes, in turn; (): all
                "w": (),  # strengths of guidance: none, one, or several
                "guidance_scale": (),  # the same as 1 + w
                "guidance_interval": (0.0, 1.0),  # times t between which it is on
                "guidance_rescale": 0.0,  # share of the contrast that is taken back
                "noise": "",  # an .npy of z_1 to start from
                "image": "",  # or pictures: a file, a folder, an .npy
                "image_labels": (),  # their classes, in turn, to encode them by
                "encode_steps": 256,  # by the encoding student of so many, or the base
                "from_t": 1.0,  # below 1: adds noise to the pictures, encodes nothing
                "sampler": "ddim",  # ddim, ancestral, dpmpp_2m, heun, stochastic
                "eta": 0.0,  # of ddim; 1 draws new noise in every step
                "variance": "large",  # of ancestral: small, large, medium:F
                "clip": True,  # x_hat to [-1, 1]
                "clip_value": 0.0,  # > 0: x_hat and eps_hat to this instead
                "threshold": 0.0,  # > 0: dynamic, with this quantile, instead
                "trajectory": False,  # also what is passed through
                "interpolate": 0,  # also so many pictures between two noises
            },
            "evaluate": {
                "steps": (1, 2, 4, 8, 16),
                "reference_steps": 256,  # of the base, to compare with
                "samplers": ("ddim", "ancestral", "dpmpp_2m", "heun"),  # of the base
                "num": 50_000,  # pictures of each seed
                "seed": 0,  # and the next
                "repeats": 3,  # so many seeds
                "w": (),  # strengths of guidance
                "judge": False,  # whether pictures are of the class asked for
                "features": (),  # inception, classifier, pixels; (): all there are
                "inception_weights": "",  # docs/evaluation.md tells where to get them
                "reference_split": "train",
                "reference_num": 50_000,  # real pictures, evenly spaced; 0: all
                "reference_stats": "",  # published ones, an .npz of mu and sigma
                "likelihood_num": 0,  # held-out pictures for bits/dim
            },
        }
    )
    return config.lock()  # a misspelt field is an error
