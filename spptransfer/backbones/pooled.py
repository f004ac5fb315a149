"""The maximum over windows of maps that an activation has made non-negative."""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import nn

# Non-negative numbers are in the order of their bits, which processors compare several times as
# fast as the numbers themselves.
_BITS = {torch.bfloat16: torch.int16, torch.float32: torch.int32}


class NonNegativeMaxPool(nn.Module):
    """A `torch.nn.MaxPool2d` for maps without negative numbers: along columns, then along rows.

    Parameters
    ----------
    pool : MaxPool2d
        One that `suits`.

    Notes
    -----
    Equal to `pool`, but for the sign of zeros. Maps that do not lie in memory channels last, or
    on another device, are left to `pool`.

    Examples
    --------
    >>> maps = torch.rand(1, 2, 5, 6).to(memory_format=torch.channels_last)
    >>> pool = nn.MaxPool2d(3, 2)
    >>> with torch.inference_mode():
    ...     torch.equal(NonNegativeMaxPool(pool)(maps), pool(maps))
    True
    """

    def __init__(self, pool: nn.MaxPool2d) -> None:
        super().__init__()
        self.pool = pool
        self.kernel = _side(pool.kernel_size)
        self.stride = _side(pool.stride)
        self.padding = _side(pool.padding)

    @staticmethod
    def suits(pool: nn.Module) -> TypeGuard[nn.MaxPool2d]:
        """Whether windows are square and dense, without incomplete ones in the end."""
        if type(pool) is not nn.MaxPool2d or pool.return_indices or pool.ceil_mode:
            return False
        sizes = (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
        if any(isinstance(size, tuple) and len(set(size)) > 1 for size in sizes):
            return False
        # With less padding than that, no window begins or ends in the middle of it.
        return _side(pool.dilation) == 1 and 2 * _side(pool.padding) < _side(pool.kernel_size)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Pool N x C x H x W maps."""
        rows = maps.permute(0, 2, 3, 1)
        quick = maps.device.type == "cpu" and maps.dtype in _BITS and rows.is_contiguous()
        if not quick or torch.is_grad_enabled() or min(maps.shape[2:]) < self.kernel:
            pooled: torch.Tensor = self.pool(maps)
            return pooled
        bits = rows.view(_BITS[maps.dtype])
        for axis in (1, 2):
            bits = self._along(bits, axis)
        return bits.contiguous().view(maps.dtype).permute(0, 3, 1, 2)

    def _along(self, bits: torch.Tensor, axis: int) -> torch.Tensor:
        """Maximum over windows along one axis."""
        length, step = bits.shape[axis], self.stride
        count = (length + 2 * self.padding - self.kernel) // step + 1
        # Beginning with the place that no window lacks.
        found, fresh = _every(bits, axis, 0, count, step), False
        for place in (*range(1, self.kernel - self.padding), *range(-self.padding, 0)):
            first = -(place // step) if place < 0 else 0
            last = min(count, (length - 1 - place) // step + 1)
            here = _every(bits, axis, first * step + place, last - first, step)
            if fresh or last - first < count:
                found = found if fresh else found.clone()
                part = found.narrow(axis, first, last - first)
                torch.maximum(part, here, out=part)
            else:
                found = torch.maximum(found, here)
            fresh = True
        return found


def _every(bits: torch.Tensor, axis: int, start: int, count: int, step: int) -> torch.Tensor:
    """So many places of an axis, a step apart."""
    end = start + max(0, (count - 1) * step + 1)
    return bits[(*(slice(None),) * axis, slice(start, end, step))]


def _side(size: int | tuple[int, ...]) -> int:
    return size if isinstance(size, int) else size[0]
