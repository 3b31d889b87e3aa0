"""The GPU kernel that patch_embed replaces, in Triton: one program embeds a block of patches.

Origin: written for neuron-port. License: Apache-2.0.
Learnt from: the matrix multiplication of Triton's tutorials (MIT).
No code was taken.
"""

import torch
import triton
import triton.language as tl

BLOCK_T, BLOCK_O, BLOCK_K = 32, 64, 32


@triton.jit
def _embed(
    x, weight, bias, out, patches, products, features, channels, height, width, rows, columns,
    R: tl.constexpr, S: tl.constexpr, HAS_BIAS: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    image, row, column = t // (rows * columns), t // columns % rows, t % columns
    corner_T = image * channels * height * width + row * R * width + column * S
    total_TO = tl.zeros((BLOCK_T, BLOCK_O), dtype=tl.float32)
    for start in range(0, products, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        place_K = k // (R * S) * height * width + k // S % R * width + k % S
        x_TK = tl.load(
            x + corner_T[:, None] + place_K[None, :],
            (t[:, None] < patches) & (k[None, :] < products),
            other=0.0,
        )
        weight_KO = tl.load(
            weight + k[:, None] * features + o[None, :],
            (k[:, None] < products) & (o[None, :] < features),
            other=0.0,
        )
        total_TO = tl.dot(x_TK, weight_KO, total_TO, input_precision="ieee")
    if HAS_BIAS:
        total_TO += tl.load(bias + o, o < features, other=0.0).to(tl.float32)[None, :]
    inside = (t[:, None] < patches) & (o[None, :] < features)
    tl.store(out + t[:, None] * features + o[None, :], total_TO.to(out.dtype.element_ty), inside)


def patch_embed(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x [B, C, H, W], weight [C, R, S, O], bias [O] or none; all contiguous. Returns [B, patches, O]."""
    images, channels, height, width = x.shape
    _, patch_rows, patch_columns, features = weight.shape
    rows, columns = height // patch_rows, width // patch_columns
    patches, products = images * rows * columns, channels * patch_rows * patch_columns
    out = torch.empty((images, rows * columns, features), dtype=x.dtype, device=x.device)
    grid = (triton.cdiv(patches, BLOCK_T), triton.cdiv(features, BLOCK_O))
    has_bias = bias is not None
    _embed[grid](
        x, weight, bias if has_bias else x, out, patches, products, features, channels, height, width, rows, columns,
        R=patch_rows, S=patch_columns, HAS_BIAS=has_bias, BLOCK_T=BLOCK_T, BLOCK_O=BLOCK_O, BLOCK_K=BLOCK_K,
    )  # fmt: skip
    return out
