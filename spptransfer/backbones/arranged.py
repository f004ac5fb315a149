"""Weights of a convolution in the orders that oneDNN wants for maps of different sizes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Sequence

import torch

_MAX_ORDERS = 4
_MAX_SIZES = 1 << 14
# Seconds that oneDNN takes to get ready for a new shape, generously.
_SETTING_UP = 1e-3
# Which order convolutions want, by all that it depends on: networks repeat theirs block by block.
_WANTED: dict[Hashable, bytes] = {}


class ArrangedWeights:
    """All orders that were wanted so far; there are few, mostly one.

    Parameters
    ----------
    padding, stride, dilation : sequence of int
        Of the convolution, by rows and by columns.
    groups : int
        Of the convolution.
    alike : int
        After how many shapes that want one order the next ones are expected to want it too.
    """

    def __init__(
        self,
        padding: Sequence[int] = (0, 0),
        stride: Sequence[int] = (1, 1),
        dilation: Sequence[int] = (1, 1),
        groups: int = 1,
        alike: int = 4,
    ) -> None:
        self.geometry = (list(padding), list(stride), list(dilation), groups)
        self._alike = alike
        self._by_order: dict[bytes, torch.Tensor] = {}
        self._arranged = 0
        self._pace = math.inf  # seconds per number of the input, the best so far

    def first_use(
        self,
        shape: torch.Size,
        make: Callable[[], torch.Tensor],
        filtered: Callable[[torch.Tensor], torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Filter maps of a new shape, and find out which order suits them.

        Arranging weights takes about as long as filtering a map. It is saved where another
        convolution of the kind is known to want an order that these weights are there in. Where
        the first shapes wanted one order, this one is expected to want it too: oneDNN takes any
        order, but rearranges an unfitting one on every call, at such a price that the clock tells.

        Parameters
        ----------
        shape : Size
            Of the maps.
        make : callable
            Gives the weights as torch has them.
        filtered : callable
            Filters the maps with arranged weights.

        Returns
        -------
        weight : Tensor
            What to use for maps of this shape.
        maps : Tensor
            The maps filtered.
        """
        if len(self._by_order) >= _MAX_ORDERS:
            self._by_order, self._arranged, self._pace = {}, 0, math.inf
        orders = list(self._by_order.values())
        guesses = len(orders) == 1 and self._arranged >= self._alike
        weight = orders[0] if guesses else self._arranged_for(shape, make)
        start = time.thread_time()
        found = filtered(weight)
        seconds = time.thread_time() - start
        if guesses and seconds > 3 * self._pace * shape.numel() + _SETTING_UP:
            weight = self._arrange(shape, make())
        self._pace = min(self._pace, seconds / shape.numel())
        return weight, found

    def _arranged_for(self, shape: torch.Size, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Weights in the order for maps of a shape; they may be there in it."""
        plain = make()
        known = self._by_order.get(_WANTED.get(self._kind(shape, plain), b""))
        if known is None:
            return self._arrange(shape, plain)
        self._arranged += 1
        return known

    def _arrange(self, shape: torch.Size, plain: torch.Tensor) -> torch.Tensor:
        """Bring weights into the order for maps of a shape; equal orders share one copy."""
        fresh = torch.ops.mkldnn._reorder_convolution_weight(plain, *self.geometry, list(shape))
        order = _order_of(fresh)
        if len(_WANTED) >= _MAX_SIZES:
            _WANTED.clear()
        _WANTED[self._kind(shape, plain)] = order
        self._arranged += 1
        return self._by_order.setdefault(order, fresh)

    def _kind(self, shape: torch.Size, plain: torch.Tensor) -> Hashable:
        """All that the order depends on."""
        threads = torch.get_num_threads()
        return shape, plain.shape, plain.dtype, threads, str(self.geometry)


def _order_of(weight: torch.Tensor) -> bytes:
    """How weights lie in memory, as oneDNN describes it."""
    described = bytearray(torch.ops.mkldnn._get_mkldnn_serialized_md(weight).tolist())
    described[_UNUSED_BYTES] = bytes(4)
    return bytes(described)


# Between the type (32 bits) and the padded sizes (64 bits each) of a description nothing is
# stored, and what happens to stand there differs.
_UNUSED_BYTES = slice(108, 112)
