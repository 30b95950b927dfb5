"""Checks of the data, and of how they become x.

Each raises a ValueError of one line, as `check` does.
"""

from vdiff_jax.codec import Autoencoder, Latents
from vdiff_jax.from_config.check.terms import runs
from vdiff_jax.from_config.choices import Config, user_function
from vdiff_jax.from_config.fields import TRAINING
from vdiff_jax.from_config.model import make_codec


def check_data(config: Config) -> None:
    """Refuses data, a codec or a clipping that do not fit each other."""
    data = config.data
    for field in ("image_size", "channels"):
        if not data[field] and config.stage != "import":
            raise ValueError(
                f"data.{field}=0 must be at least 1: an imported model brings it, and"
                " there is none in the workdir; run the import stage first, or set it."
            )
    if runs(config, *TRAINING, "evaluate"):
        if ":" in data.source:
            user_function("data.source", data.source)
        if data.source == "tfds" and not data.name:
            raise ValueError(
                "data.name='' must be a data set of TensorFlow Datasets, for"
                " data.source='tfds'."
            )
    codec = make_codec(config)
    if isinstance(codec, Autoencoder):
        _check_fits(data, codec.latents)
    elif data.latent_shift and not data.latent_scale:
        raise ValueError(
            f"data.latent_shift={data.latent_shift} is of latents, and these data are"
            " images: set data.latent_scale or data.autoencoder too, or leave it out."
        )
    clip = config.sample.clip
    if clip != "auto" and (clip == "x" or clip.startswith("dynamic")):
        _check_bounded(config)


def _check_fits(data: Config, latents: Latents) -> None:
    """Refuses data of other latents than those of the autoencoder."""
    if data.channels not in (0, latents.channels):
        raise ValueError(
            f"data.channels={data.channels}, but the latents of data.autoencoder="
            f"{data.autoencoder!r} have {latents.channels}: set data.channels="
            f"{latents.channels}."
        )
    if data.latent_shift not in (0.0, latents.shift):
        raise ValueError(
            f"data.latent_shift={data.latent_shift}, but that of data.autoencoder="
            f"{data.autoencoder!r} is {latents.shift}: set it to 0."
        )


def _check_bounded(config: Config) -> None:
    if not make_codec(config).bounded:
        raise ValueError(
            f"sample.clip={config.sample.clip!r} keeps x in [-1, 1], but latents"
            " (data.latent_scale, data.autoencoder) have no bounds: set"
            " sample.clip='auto'."
        )
