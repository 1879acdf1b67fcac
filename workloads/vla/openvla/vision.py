"""The vision towers: ViTs under timm's parameter names, in plain PyTorch.

Features are the patch tokens after the second-to-last block, without the final norm. The last
block, the final norm and SigLIP's pooling belong to the published checkpoint and are never
computed; they are kept so that a loaded model can be saved again, and get no gradient.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_layers import GradientCheckpointingLayer

from workloads.errors import UserError
from workloads.vla.openvla.config import CHANNELS_PER_TOWER, OpenVLASpec, Tower

LAYER_NORM_EPS = 1e-6


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the activation of towers that name it in config.json."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape → the same shape."""
        return x * torch.sigmoid(1.702 * x)


def activation(name: str) -> nn.Module:
    """The module of an activation named in config.json; "gelu" is the exact one."""
    if name == "gelu_tanh":
        return nn.GELU(approximate="tanh")
    kinds: dict[str, type[nn.Module]] = {
        "gelu": nn.GELU,
        "quick_gelu": QuickGELU,
        "silu": nn.SiLU,
        "relu": nn.ReLU,
    }
    return kinds[name]()


class PatchEmbed(nn.Module):
    """[B, 3, H, W] → [B, patches, width] by a convolution as wide as its stride."""

    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.proj = nn.Conv2d(CHANNELS_PER_TOWER, tower.width, tower.patch, stride=tower.patch)

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] → [B, patches, width]."""
        patches: Tensor = self.proj(pixels)
        return patches.flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention over all tokens; `fused` uses PyTorch's fused kernels."""

    def __init__(self, width: int, heads: int, fused: bool) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        self.fused = fused
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, tokens, width] → [B, tokens, width]."""
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            mixed = functional.scaled_dot_product_attention(query, key, value)
        else:
            weights = ((query * self.scale) @ key.transpose(-2, -1)).softmax(dim=-1)
            mixed = weights @ value
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return out


class Mlp(nn.Module):
    """Linear, activation, linear."""

    def __init__(self, width: int, hidden: int, act: str) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = activation(act)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] → [..., width]."""
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class LayerScale(nn.Module):
    """A learned factor per channel, stored as `scale_factor` in OpenVLA checkpoints."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale_factor = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] → [..., width]."""
        return x * self.scale_factor


class Block(GradientCheckpointingLayer):
    """A pre-norm transformer block."""

    def __init__(self, tower: Tower, fused: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(tower.width, eps=LAYER_NORM_EPS)
        self.attn = Attention(tower.width, tower.heads, fused)
        self.ls1 = LayerScale(tower.width) if tower.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(tower.width, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(tower.width, tower.mlp_width, tower.activation)
        self.ls2 = LayerScale(tower.width) if tower.layer_scale else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, tokens, width] → [B, tokens, width]."""
        x = x + self.ls1(self.attn(self.norm1(x)))
        out: Tensor = x + self.ls2(self.mlp(self.norm2(x)))
        return out


class AttentionPool(nn.Module):
    """SigLIP's pooling head: parameters of the checkpoint that OpenVLA never computes with."""

    def __init__(self, tower: Tower) -> None:
        super().__init__()
        width = tower.width
        self.latent = nn.Parameter(torch.zeros(1, 1, width))
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(width, tower.mlp_width, tower.activation)


class VisionTower(nn.Module):
    """One ViT: [B, 3, H, W] → patch features [B, patches, width]."""

    def __init__(self, tower: Tower, fused_attention: bool) -> None:
        super().__init__()
        self.tower = tower
        self.patch_embed = PatchEmbed(tower)
        if tower.class_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, tower.width))
        if tower.registers:
            self.reg_token = nn.Parameter(torch.zeros(1, tower.registers, tower.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, tower.patches, tower.width))
        self.blocks = nn.ModuleList(Block(tower, fused_attention) for _ in range(tower.depth))
        self.norm = nn.LayerNorm(tower.width, eps=LAYER_NORM_EPS)
        if tower.attention_pool:
            self.attn_pool = AttentionPool(tower)

    def unused(self) -> list[str]:
        """Names of the modules that the features never pass through."""
        pool = ["attn_pool"] if self.tower.attention_pool else []
        return [f"blocks.{self.tower.depth - 1}", "norm", *pool]

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, S, S] → [B, patches, width] of the last layer but one.

        Raises UserError for pixels of another size.
        """
        size = self.tower.image_size
        if tuple(pixels.shape[-2:]) != (size, size):
            raise UserError(
                f"expected pixel values of {size}x{size}, found "
                f"{pixels.shape[-2]}x{pixels.shape[-1]}; use the checkpoint's image processor"
            )
        # Only patches have positions: class and register tokens are added after them.
        x = self.patch_embed(pixels.to(self.pos_embed.dtype)) + self.pos_embed
        prefix = []
        if self.tower.class_token:
            prefix.append(self.cls_token)
        if self.tower.registers:
            prefix.append(self.reg_token)
        x = torch.cat([*(token.expand(len(x), -1, -1) for token in prefix), x], dim=1)
        for block in self.blocks[:-1]:
            x = block(x)
        return x[:, self.tower.prefix_tokens :]


class VisionBackbone(nn.Module):
    """The tower or the two towers: [B, channels * images, H, W] → [B, patches * images, width].

    Channels 0-2 of an image belong to the first tower, 3-5 to the second; several images stand
    one after the other in the channels, and their patches one after the other in the result.
    """

    def __init__(self, spec: OpenVLASpec, fused_attention: bool) -> None:
        super().__init__()
        self.channels = spec.channels
        self.featurizer = VisionTower(spec.towers[0], fused_attention)
        if spec.fused:
            self.fused_featurizer = VisionTower(spec.towers[1], fused_attention)
        self.fused = spec.fused

    def unused(self) -> list[str]:
        """Names of the modules that the features never pass through."""
        names = [f"featurizer.{name}" for name in self.featurizer.unused()]
        if self.fused:
            names += [f"fused_featurizer.{name}" for name in self.fused_featurizer.unused()]
        return names

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[B, channels * images, H, W] → [B, patches * images, width].

        Raises UserError for pixels of another shape.
        """
        if pixel_values.ndim != 4 or pixel_values.shape[1] % self.channels:
            raise UserError(
                f"expected pixel values [batch, {self.channels} x images, height, width], found "
                f"{list(pixel_values.shape)}; use the checkpoint's image processor"
            )
        images = pixel_values.split(self.channels, dim=1)
        return torch.cat([self._features(image) for image in images], dim=1)

    def _features(self, image: Tensor) -> Tensor:
        first: Tensor = self.featurizer(image[:, :CHANNELS_PER_TOWER])
        if not self.fused:
            return first
        return torch.cat([first, self.fused_featurizer(image[:, CHANNELS_PER_TOWER:])], dim=2)
