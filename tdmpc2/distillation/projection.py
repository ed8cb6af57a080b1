"""From one latent space to another of different size: a linear map that is trained, and a PCA that is fitted."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tdmpc2.nn.layers import Linear, simnorm


def linear_projection(in_dim: int, out_dim: int, seed: int) -> Linear:
    """An affine map [..., in] -> [..., out] to be trained, with weights of a generator of its own."""
    layer = Linear(in_dim, out_dim)
    with torch.no_grad():
        layer.weight.normal_(0, 0.02, generator=torch.Generator().manual_seed(seed))
    return layer


class PCA(NamedTuple):
    """The first d principal components of latents of size D."""

    mean: Tensor  # [D]
    components: Tensor  # [D, d], orthogonal columns of one length, by descending variance

    def project(self, z: Tensor, group: int) -> Tensor:
        """Latents [..., D] as points of a space of SimNorm latents with groups of ``group``, [..., d]."""
        with torch.autocast(z.device.type, enabled=False):  # a target, which bf16 would round
            return simnorm((z.to(self.mean.dtype) - self.mean) @ self.components, group)


def fit_pca(z: Tensor, dims: int) -> tuple[PCA, float]:
    """Find the principal components of latents, by the eigenvectors of their covariance in float64 on the CPU.

    All components are divided by one number, the root of their mean variance: this keeps their proportions and gives
    the softmax of SimNorm inputs of moderate size. The sign of a component is that its largest entry is
    positive.

    Args:
        z: N latents, [N, D].
        dims: number of components d, at most D.

    Returns:
        The components, in float32 on the CPU, and their share of the variance.

    Raises:
        ValueError: fewer than two latents, latents that are not finite or that are all the same.
    """
    z = z.detach().cpu().double()
    mean = z.mean(0)
    covariance = (z - mean).T @ (z - mean) / max(len(z) - 1, 1)
    total = float(covariance.trace())
    if not 1e-12 < total < float("inf"):
        raise ValueError(f"The teacher's {len(z)} latents have a variance of {total}: no principal components in them")
    variance, vectors = torch.linalg.eigh(covariance)  # ascending
    vectors = vectors.flip(1)[:, :dims]
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    kept = float(variance.flip(0)[:dims].sum())
    components = vectors * largest.sign() * (dims / kept) ** 0.5
    return PCA(mean.float(), components.float()), kept / total
