"""Attention pooling: a set of patch vectors becomes one (Trinh, Luong, Le 2019, section 3.2).

B  images      T  tokens: the learned u0, then the visible patches      D  width      H  heads
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TransformerLayer(nn.Module):
    """Self-attention, then two fully connected layers with GELU between them, as in BERT. Dropout acts on the attention
    weights and on each residual branch, layer norm on each sum (post-norm).

    For D = 1024 these are the paper's numbers: intermediate width 640, 32 heads. Other widths keep their ratio (5 / 8)
    and the width of a head (32).
    """

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.dropout = max(1, width // 32), dropout
        intermediate = width * 5 // 8
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm1 = nn.LayerNorm(width)
        self.expand = nn.Linear(width, intermediate)
        self.contract = nn.Linear(intermediate, width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, x: Tensor, num_queries: int) -> Tensor:
        """Tokens [B, T, D] -> the first `num_queries` of them after this layer, each attending to all T."""
        b, t, d = x.shape
        qkv = self.qkv(x).view(b, t, 3, self.num_heads, d // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # 3 x [B, H, T, D / H]
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q[:, :, :num_queries], k, v, dropout_p=dropout)
        mixed = mixed.transpose(1, 2).reshape(b, num_queries, d)  # [B, num_queries, D]
        x = self.norm1(x[:, :num_queries] + F.dropout(self.out(mixed), dropout, self.training))
        y = self.contract(F.gelu(self.expand(x)))
        out: Tensor = self.norm2(x + F.dropout(y, dropout, self.training))
        return out


class AttentionPooling(nn.Module):
    """Attention pooling: put a learned u0 before the patch vectors, run 3 layers, keep the output at u0."""

    def __init__(self, width: int, *, dropout: float = 0.1) -> None:
        super().__init__()
        self.u0 = nn.Parameter(torch.empty(width))
        self.layers = nn.ModuleList(TransformerLayer(width, dropout) for _ in range(3))
        nn.init.normal_(self.u0, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, vectors: Tensor) -> Tensor:
        """Vectors [B, T - 1, D], in any order -> [B, D]."""
        b, t, d = vectors.shape
        x = torch.cat([self.u0.to(vectors.dtype).expand(b, 1, d), vectors], dim=1)  # [B, T, D]
        for layer in self.layers[:-1]:
            x = layer(x, num_queries=t + 1)
        # Only the output at u0 is used, so the last layer computes no other.
        pooled: Tensor = self.layers[-1](x, num_queries=1)  # [B, 1, D]
        return pooled.squeeze(1)  # [B, D]


class Positions(nn.Module):
    """Learned position embeddings of a g x g grid: one per place, or the sum of one per row and one per column."""

    def __init__(self, grid: int, width: int, *, factorized: bool) -> None:
        super().__init__()
        self.factorized = factorized
        self.vectors = nn.Parameter(torch.empty(2 * grid if factorized else grid * grid, width))
        nn.init.normal_(self.vectors, std=0.02)

    def forward(self) -> Tensor:
        """The embeddings of all places, row by row: [N, D]."""
        if not self.factorized:
            return self.vectors
        rows, columns = self.vectors.chunk(2)  # [g, D] each
        grid: Tensor = rows.unsqueeze(1) + columns.unsqueeze(0)  # [g, g, D]
        return grid.flatten(0, 1)  # [N, D]
