"""Capabilities of this machine's processors."""

import torch


def bf16_pays(device: torch.device) -> bool:
    """Whether `device` multiplies bf16 in hardware: CUDA from compute capability 8, CPUs with AVX-512 BF16 or AMX."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def has_vnni(device: torch.device) -> bool:
    """Whether `device` is a CPU that multiplies 8-bit integers four at a time."""
    return device.type == "cpu" and bool(torch.cpu._is_vnni_supported())
