"""The project's U-Net in PyTorch: the same parameters, the same function.

Images are NCHW. The caller chooses `torch.channels_last`, in which convolutions are
fastest and attention need not copy.
"""

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vdiff_jax.nets import unet
from vdiff_jax.nets.conditioning import LogsnrInput
from vdiff_jax.nets.layers import Resample

Tree: TypeAlias = Any  # flax's parameters: arrays in dicts in a dict


class UNet(nn.Module):
    """The network of `vdiff_jax.nets.unet.UNet`, conditioned on log-SNR and class.

    Args:
      net: The flax module to be like.
      in_channels: Channels of the images.
    """

    def __init__(self, net: unet.UNet, in_channels: int):
        super().__init__()
        first, last = net.levels[0].features, net.levels[-1].features
        self.patch = net.patch
        self.num_classes = net.num_classes
        self.logsnr_input: LogsnrInput = net.logsnr_input
        self.register_buffer("frequencies", _frequencies(first), persistent=False)

        self.dense0 = nn.Linear(first, net.emb_features)
        self.dense1 = nn.Linear(net.emb_features, net.emb_features)
        if net.num_classes:
            self.class_emb = nn.Linear(net.num_classes, net.emb_features)

        self.conv_in = _conv3x3(net.patch**2 * in_channels, first)
        features, skips = first, [first]
        self.down = nn.ModuleList()
        for l, level in enumerate(net.levels):
            how = "down" if l < len(net.levels) - 1 else None
            in_features = [features] + [level.features] * (level.num_blocks - 1)
            self.down.append(Level(net, level, in_features, how))
            features = level.features
            skips += [features] * (level.num_blocks + (how is not None))

        self.mid_block_1 = ResnetBlock(net, last, last)
        self.mid_attn_1 = Attention(net, last, net.mid_heads)
        self.mid_block_2 = ResnetBlock(net, last, last)

        self.up = nn.ModuleList()
        for l, level in reversed(list(enumerate(net.levels))):
            in_features = []
            for _ in range(level.num_blocks + 1):
                in_features.append(features + skips.pop())
                features = level.features
            self.up.append(Level(net, level, in_features, "up" if l > 0 else None))

        self.norm_out = _norm(net, first)
        self.conv_out = _zeroed(_conv3x3(first, net.patch**2 * net.out_channels))

    def forward(
        self, z_t: Tensor, logsnr_t: Tensor, label: Tensor | None = None
    ) -> Tensor:
        """The output, [batch, out_channels, height, width].

        Args:
          z_t: [batch, channels, height, width].
          logsnr_t: [batch], in nats.
          label: [batch], the classes; None if there are none.
        """
        emb = self._embed(logsnr_t, label)
        h = self.conv_in(F.pixel_unshuffle(z_t, self.patch))
        skips = [h]
        for level in self.down:
            for block, attend in zip(level.blocks, level.attentions, strict=True):
                h = attend(block(h, emb))
                skips.append(h)
            if level.resample is not None:
                h = level.resample(h, emb)
                skips.append(h)

        h = self.mid_attn_1(self.mid_block_1(h, emb))
        h = self.mid_block_2(h, emb)

        for level in self.up:
            for block, attend in zip(level.blocks, level.attentions, strict=True):
                h = torch.cat([h, skips.pop()], dim=1)
                h = attend(block(h, emb))
            if level.resample is not None:
                h = level.resample(h, emb)

        h = self.conv_out(F.silu(self.norm_out(h)))
        return F.pixel_shuffle(h, self.patch)

    def _embed(self, logsnr_t: Tensor, label: Tensor | None) -> Tensor:
        """The embedding as each block wants it: after its activation."""
        time = 1000.0 * _logsnr_input(logsnr_t, self.logsnr_input)
        angles = time[:, None] * self.frequencies
        emb = self.dense0(torch.cat([angles.sin(), angles.cos()], dim=1))
        emb = self.dense1(F.silu(emb))
        if label is not None:
            one_hot = F.one_hot(label.long(), self.num_classes).to(emb.dtype)
            emb = emb + self.class_emb(one_hot)
        return F.silu(emb)


class Level(nn.Module):
    """The blocks of one resolution, on the way down or up, and the way to the next.

    Args:
      net: The flax module to be like.
      level: Its level.
      in_features: Channels that come into each block.
      how: The change of resolution at the end: down, up or None.
    """

    def __init__(
        self,
        net: unet.UNet,
        level: unet.Level,
        in_features: list[int],
        how: Resample | None,
    ):
        super().__init__()
        features, heads = level.features, level.num_heads
        self.blocks = nn.ModuleList(
            ResnetBlock(net, channels, features) for channels in in_features
        )
        self.attentions = nn.ModuleList(
            Attention(net, features, heads) if heads else nn.Identity()
            for _ in in_features
        )
        self.resample = None
        if how is not None and level.resample_in_block:
            self.resample = ResnetBlock(net, features, features, how)
        elif how is not None:
            self.resample = {"down": Downsample, "up": Upsample}[how](features)


class ResnetBlock(nn.Module):
    """Two convolutions, modulated by the embedding, and a shortcut."""

    def __init__(
        self,
        net: unet.UNet,
        in_features: int,
        features: int,
        how: Resample | None = None,
    ):
        super().__init__()
        self.dropout = net.dropout
        self.how: Resample | None = how
        self.norm1 = _norm(net, in_features)
        self.conv1 = _conv3x3(in_features, features)
        self.temb_proj = nn.Linear(net.emb_features, 2 * features)
        self.norm2 = _norm(net, features)
        self.conv2 = _zeroed(_conv3x3(features, features))
        self.nin_shortcut = None
        if in_features != features:
            self.nin_shortcut = nn.Conv2d(in_features, features, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Takes the embedding after its activation, which all blocks share."""
        h = F.silu(self.norm1(x))
        if self.how is not None:
            h, x = _resample(h, self.how), _resample(x, self.how)
        h = self.conv1(h)
        scale, shift = self.temb_proj(emb)[:, :, None, None].chunk(2, dim=1)
        h = F.silu(torch.addcmul(shift, self.norm2(h), 1.0 + scale))
        h = self.conv2(F.dropout(h, self.dropout, self.training))
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class Attention(nn.Module):
    """Self-attention over all pixels, with a residual connection."""

    def __init__(self, net: unet.UNet, features: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.norm = _norm(net, features)
        self.qkv = nn.Linear(features, 3 * features)
        self.proj_out = _zeroed(nn.Linear(features, features))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the shape of `x`."""
        batch, channels, height, width = x.shape
        h = self.norm(x).permute(0, 2, 3, 1).flatten(1, 2)
        heads = self.qkv(h).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(q, k, v)
        h = self.proj_out(h.transpose(1, 2).flatten(2))
        return x + h.view(batch, height, width, channels).permute(0, 3, 1, 2)


class Downsample(nn.Conv2d):
    """Halves the resolution by a convolution, which sees no embedding."""

    def __init__(self, features: int):
        super().__init__(features, features, 3, stride=2)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Pads as flax does: at the far sides only."""
        del emb
        return super().forward(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Conv2d):
    """Doubles the resolution, then a convolution, which sees no embedding."""

    def __init__(self, features: int):
        super().__init__(features, features, 3, padding=1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Repeats pixels."""
        del emb
        return super().forward(_resample(x, "up"))


def num_parameters(net: nn.Module) -> int:
    """The count of numbers that a network learns."""
    return sum(parameter.numel() for parameter in net.parameters())


@torch.no_grad()
def load_flax(net: UNet, params: Tree) -> None:
    """Copies the parameters of the flax module, a tree of NumPy arrays, into `net`."""
    for name, part in _parts(net):
        _load(part, params[name])
    inside = _folded(params["conv_in"]["kernel"], net.patch, axis=2)
    net.conv_in.weight.copy_(_weight(inside))
    outside = _folded(params["conv_out"]["kernel"], net.patch, axis=3)
    net.conv_out.weight.copy_(_weight(outside))
    net.conv_out.bias.copy_(_tensor(_folded(params["conv_out"]["bias"], net.patch, 0)))


def _parts(net: UNet) -> Iterator[tuple[str, nn.Module]]:
    """Parts by the names they have in flax."""
    names = ("conv_in", "dense0", "dense1", "norm_out", "conv_out")
    for name in names + (("class_emb",) if net.num_classes else ()):
        yield name, getattr(net, name)
    for name in ("block_1", "attn_1", "block_2"):
        yield f"mid.{name}", getattr(net, f"mid_{name}")
    for way, levels in (("down", net.down), ("up", reversed(net.up))):
        for l, level in enumerate(levels):
            for b, (block, attend) in enumerate(
                zip(level.blocks, level.attentions, strict=True)
            ):
                yield f"{way}_{l}.block_{b}", block
                if isinstance(attend, Attention):
                    yield f"{way}_{l}.attn_{b}", attend
            if level.resample is not None:
                yield f"{way}_{l}.{way}sample", level.resample


def _load(part: nn.Module, params: Tree) -> None:
    if isinstance(part, ResnetBlock):
        for name, child in part.named_children():
            _load(child, params[name])
    elif isinstance(part, Attention):
        _load(part.norm, params["norm"])
        _load(part.proj_out, params["proj_out"])
        qkv = [params[name] for name in ("q", "k", "v")]
        channels = part.proj_out.in_features
        kernels = [each["kernel"].reshape(channels, channels) for each in qkv]
        part.qkv.weight.copy_(_weight(np.concatenate(kernels, axis=1)))
        biases = [each["bias"].reshape(channels) for each in qkv]
        part.qkv.bias.copy_(_tensor(np.concatenate(biases)))
    elif isinstance(part, nn.GroupNorm):
        part.weight.copy_(_tensor(params["scale"]))
        part.bias.copy_(_tensor(params["bias"]))
    else:
        # A shortcut is a matrix there and a convolution here; the last projection of
        # attention has an axis of heads there.
        weight = _weight(params["kernel"]).reshape(part.weight.shape)
        part.weight.copy_(weight)
        part.bias.copy_(_tensor(params["bias"]))


def _weight(kernel: np.ndarray) -> Tensor:
    """Outputs and inputs first, as PyTorch has them."""
    if kernel.ndim == 4:
        return _tensor(kernel.transpose(3, 2, 0, 1))
    return _tensor(kernel.reshape(-1, kernel.shape[-1]).T)


def _folded(kernel: np.ndarray, patch: int, axis: int) -> np.ndarray:
    """Channels of patches: flax has the colour last, `pixel_unshuffle` first."""
    shape = kernel.shape
    folded = kernel.reshape(*shape[:axis], patch**2, -1, *shape[axis + 1 :])
    return folded.swapaxes(axis, axis + 1).reshape(shape)


def _tensor(array: np.ndarray) -> Tensor:
    return torch.tensor(np.ascontiguousarray(array))


def _conv3x3(in_features: int, features: int) -> nn.Conv2d:
    return nn.Conv2d(in_features, features, 3, padding=1)


def _norm(net: unet.UNet, features: int) -> nn.GroupNorm:
    return nn.GroupNorm(net.groups, features, eps=1e-6)


def _zeroed(layer: Any) -> Any:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _resample(x: Tensor, how: Resample) -> Tensor:
    if how == "down":
        return F.avg_pool2d(x, 2)
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def _frequencies(features: int) -> Tensor:
    return torch.logspace(0.0, -4.0, features // 2, dtype=torch.float64).float()


def _logsnr_input(logsnr: Tensor, mode: LogsnrInput) -> Tensor:
    if mode == "inv_cos":
        clipped = logsnr.clamp(-20.0, 20.0)
        return torch.atan(torch.exp(-0.5 * clipped)) / (0.5 * torch.pi)
    if mode == "linear":
        return (logsnr + 20.0) / 40.0
    return torch.sigmoid(logsnr)
