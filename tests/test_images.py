"""What the decoder makes of all that image files hold."""

import io
import struct
import zlib

import numpy as np
import PIL.Image
import pytest

from vdiff_jax.datasets.folder import Folder
from vdiff_jax.datasets.images import Fit, Images, decode


def _file(picture, kind="PNG", **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def _decoded(picture, kind="PNG", **options):
    return decode(_file(picture, kind, **options))


def _noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize(
    ("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True})]
)
@pytest.mark.parametrize("shape", [(5, 7, 3), (5, 7)])
def test_lossless_files_come_back_bit_for_bit(kind, options, shape):
    pixels = _noise(*shape)
    decoded = _decoded(PIL.Image.fromarray(pixels), kind, **options)
    expected = "RGB" if kind == "WEBP" else {3: "RGB", 2: "L"}[len(shape)]
    assert decoded.mode == expected
    grey_or_rgb = np.asarray(decoded)
    if kind == "WEBP" and len(shape) == 2:  # WebP has no grey
        grey_or_rgb = grey_or_rgb[..., 0]
    np.testing.assert_array_equal(grey_or_rgb, pixels)


def test_a_picture_of_one_bit_becomes_black_and_white():
    bits = _noise(6, 6) > 127
    decoded = _decoded(PIL.Image.fromarray(bits))
    assert decoded.mode == "L"
    np.testing.assert_array_equal(np.asarray(decoded), np.where(bits, 255, 0))


def test_a_palette_becomes_its_colours():
    indices = (_noise(6, 6) % 4).astype(np.uint8)
    colours = _noise(4, 3, seed=1)
    picture = PIL.Image.fromarray(indices, "P")
    picture.putpalette(colours.tobytes())
    np.testing.assert_array_equal(np.asarray(_decoded(picture)), colours[indices])


def test_16_bits_are_rounded_to_8_and_not_clipped():
    levels = np.array([[0, 128, 129, 257], [32768, 65407, 65408, 65535]], np.uint16)
    decoded = _decoded(PIL.Image.fromarray(levels))
    # 65535 / 255 = 257 levels to a level.
    np.testing.assert_array_equal(
        np.asarray(decoded), [[0, 0, 1, 1], [128, 255, 255, 255]]
    )


def _png_chunk(kind, data):
    checksum = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def test_of_16_bit_colours_the_upper_8_bits_are_taken():
    # Written by hand: Pillow reads such files and does not write them.
    levels = np.random.default_rng(0).integers(0, 2**16, (2, 3, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in levels)
    header = struct.pack(">IIBBBBB", 3, 2, 16, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    file = b"\x89PNG\r\n\x1a\n" + b"".join(_png_chunk(*chunk) for chunk in chunks)
    np.testing.assert_array_equal(np.asarray(decode(file)), levels >> 8)


def test_cmyk_becomes_rgb():
    cyan = PIL.Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    red, green, blue = np.asarray(_decoded(cyan, "JPEG", quality=95)).mean(axis=(0, 1))
    assert red < 60
    assert min(green, blue) > 150


def test_what_is_transparent_is_white_and_what_is_opaque_is_untouched():
    pixels = _noise(4, 4, 4)
    pixels[..., 3] = np.where(np.arange(4) < 2, 0, 255)
    decoded = np.asarray(_decoded(PIL.Image.fromarray(pixels, "RGBA")))
    assert (decoded[:, :2] == 255).all()
    np.testing.assert_array_equal(decoded[:, 2:], pixels[:, 2:, :3])


def test_transparency_of_a_palette_or_of_grey_is_seen_too():
    grey = PIL.Image.merge("LA", [PIL.Image.new("L", (2, 2), 9)] * 2).convert("LA")
    grey.putalpha(0)
    assert (np.asarray(_decoded(grey)) == 255).all()
    palette = PIL.Image.new("P", (2, 2), 0)
    palette.putpalette([10, 20, 30])
    assert (np.asarray(_decoded(palette, transparency=0)) == 255).all()


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_taken(kind):
    frames = [PIL.Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    animated = _file(frames[0], kind, save_all=True, append_images=frames[1:])
    assert PIL.Image.open(io.BytesIO(animated)).n_frames == 2
    red, _, blue = np.asarray(decode(animated)).mean(axis=(0, 1))
    assert red > 200
    assert blue < 50


@pytest.mark.parametrize(("orientation", "turn"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_a_picture_is_turned_as_its_exif_says(orientation, turn):
    pixels = _noise(4, 6, 3)
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    decoded = _decoded(PIL.Image.fromarray(pixels), "PNG", exif=exif)
    np.testing.assert_array_equal(np.asarray(decoded), np.rot90(pixels, turn))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("keep", [0.0, 0.02, 0.5, 0.9])
def test_a_file_that_is_cut_off_is_refused(kind, keep):
    whole = _file(PIL.Image.fromarray(_noise(64, 64, 3)), kind)
    with pytest.raises(ValueError, match="cannot be read as JPEG, PNG or WebP"):
        decode(whole[: int(keep * len(whole))])


def test_noise_and_other_formats_are_refused():
    for data in (b"", b"no picture", _noise(1000).tobytes()):
        with pytest.raises(ValueError, match="cannot be read"):
            decode(data)
    with pytest.raises(ValueError, match="cannot be read"):
        decode(_file(PIL.Image.new("RGB", (4, 4)), "BMP"))


def test_a_decompression_bomb_is_refused_before_it_is_unpacked():
    bomb = _file(PIL.Image.new("1", (20_000, 20_000)))
    assert len(bomb) < 100_000
    with pytest.raises(ValueError, match="decompression bomb"):
        decode(bomb)


def test_a_picture_of_the_right_size_is_never_resampled():
    pixels = _noise(16, 16, 3)
    for resize in ("area", "bilinear", "lanczos", "pad"):
        fitted = Fit(16, 3, resize)(PIL.Image.fromarray(pixels))
        np.testing.assert_array_equal(fitted, pixels)


def test_area_is_the_mean_over_the_centre():
    pixels = _noise(8, 14, 3)
    fitted = Fit(4, 3)(PIL.Image.fromarray(pixels))
    mean = pixels[:, 3:11].reshape(4, 2, 4, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(fitted, mean, atol=1.0)  # rounded twice


@pytest.mark.parametrize("resize", ["area", "bilinear", "lanczos"])
def test_every_filter_is_antialiased_and_keeps_the_mean(resize):
    # The finest checkerboard is grey from afar; picking pixels would keep black, white.
    board = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    fitted = Fit(8, 1, resize)(PIL.Image.fromarray(board))
    assert fitted.shape == (8, 8, 1)
    assert np.abs(fitted.astype(float) - 127.5).max() < 8
    # A black half and a white one stay where they are.
    halves = np.repeat([[0, 255]], 32, axis=1).repeat(64, axis=0).astype(np.uint8)
    fitted = Fit(8, 1, resize)(PIL.Image.fromarray(halves))[..., 0]
    assert (fitted[:, :3] < 20).all()
    assert (fitted[:, 5:] > 235).all()


def test_an_image_that_is_too_large_to_pad_is_not_called_damaged(tmp_path):
    PIL.Image.fromarray(np.zeros((28, 28), np.uint8)).save(tmp_path / "a.png")
    images = Images(Folder(tmp_path), Fit(16, 1, "pad"))
    with pytest.raises(
        ValueError, match=r"cannot be padded.*data\.resize=area"
    ) as info:
        images[0]
    assert "Repair" not in str(info.value)


def test_padding_puts_the_picture_in_the_middle_of_black():
    pixels = _noise(28, 28) | 1
    fitted = Fit(32, 1, "pad")(PIL.Image.fromarray(pixels))[..., 0]
    np.testing.assert_array_equal(fitted[2:30, 2:30], pixels)
    assert fitted.astype(int).sum() == pixels.astype(int).sum()
    with pytest.raises(ValueError, match="28x28 and cannot be padded to 16"):
        Fit(16, 1, "pad")(PIL.Image.fromarray(pixels))


def test_grey_and_colour_become_what_the_model_has():
    grey = PIL.Image.fromarray(_noise(4, 4))
    colour = Fit(4, 3)(grey)
    assert colour.shape == (4, 4, 3)
    np.testing.assert_array_equal(Fit(4, 1)(PIL.Image.fromarray(colour))[..., 0], grey)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0, 3), "got 0"), ((8, 4), "not 4"), ((8, 3, "nearest"), "'nearest'")],
)
def test_a_shape_that_cannot_be_is_refused(arguments, message):
    # Under the hook, beartype would refuse the last before our own check does.
    check = getattr(Fit.__post_init__, "__wrapped__", Fit.__post_init__)
    fit = object.__new__(Fit)
    names = ("size", "channels", "resize")
    for name, value in zip(names, (*arguments, "area"), strict=False):
        object.__setattr__(fit, name, value)
    with pytest.raises(ValueError, match=message):
        check(fit)
