"""Half precision to single, at the speed of memory.

Numpy converts float16 number by number in software where it was not built for this processor's
own instruction, at ten times the cost of the products that follow.
"""

from __future__ import annotations

import numpy as np

from spptransfer.svm._types import Array

# Numbers at a time, so that the steps below find them in cache.
RUN = 65_536
# The sign and, 13 bits further left, exponent and mantissa of a half: a float32's, but for the
# exponent, which counts from -15 instead of -127.
BITS = np.int32(-0x80000000 | 0x0FFFE000)
REBIAS = np.float32(2.0**112)


def widen(half: Array, out: Array) -> Array:
    """Write finite float16 numbers into a float32 array of the same shape.

    Parameters
    ----------
    half : ndarray of float16
        C-contiguous and finite; an infinity would come out as 65536.
    out : ndarray of float32
        C-contiguous.

    Returns
    -------
    ndarray of float32
        ``out``.

    Examples
    --------
    >>> widen(np.array([1.5, -0.25], np.float16), np.empty(2, np.float32)).tolist()
    [1.5, -0.25]
    """
    source, target = half.reshape(-1).view(np.int16), out.reshape(-1)
    bits = target.view(np.int32)
    for start in range(0, len(source), RUN):
        run = bits[start : start + RUN]
        run[...] = source[start : start + RUN]
        run <<= 13
        run &= BITS
        target[start : start + RUN] *= REBIAS
    return out
