"""Some numbers that a backbone computes of a fixed image, by which another release is found out.

Weights are known by their content, but not the code around them: a release of timm or torch that
computes something else from equal weights must not be mixed with what was computed before.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from spptransfer.backbones.info import Backbone

PROBE_NUMBERS = 64
# Processors and releases round differently; another computation differs far more.
_LARGEST_DIFFERENCE = 1e-2
_SIDE = 64

Probe = npt.NDArray[np.float32]


def probe(backbone: Backbone, layers: Sequence[str]) -> Probe:
    """Compute 64 numbers of each layer of a float32 backbone, of an image of noise."""
    import torch

    info = backbone.info
    side = info.only_side or -(-max(info.min_side, _SIDE) // info.grid) * info.grid
    # Raw bits, which no release of numpy draws differently.
    drawn = np.random.PCG64(0).random_raw(3 * side * side) % 256 / 255
    image = torch.from_numpy(drawn.reshape(1, side, side, 3)).permute(0, 3, 1, 2)
    mean, std = torch.tensor([info.mean, info.std])[:, :, None, None]
    with torch.inference_mode():
        maps = backbone.maps_of(((image - mean) / std).float().contiguous(), layers)
        flat = [layer for layer in layers if info.layer(layer).kind == "vector"]
        values = {**maps, **backbone.vectors_of(maps, flat)}
        means = [values[at].flatten(2).mean(2) if at not in flat else values[at] for at in layers]
        of_layers = [each[0].numpy() for each in means]
    chosen = [np.linspace(0, len(each) - 1, PROBE_NUMBERS).astype(int) for each in of_layers]
    return np.stack([each[at] for each, at in zip(of_layers, chosen, strict=True)])


def difference(found: Probe, known: Probe) -> float:
    """Return the relative l2 distance of two probes, of the layer where it is largest.

    It is 0 where none was recorded or they agree.
    """
    lengths = np.linalg.norm(known.astype(np.float64), axis=1)
    distances = np.linalg.norm(found.astype(np.float64) - known, axis=1)
    recorded = lengths > 0
    distance = float(np.max(distances[recorded] / lengths[recorded], initial=0.0))
    return 0.0 if distance <= _LARGEST_DIFFERENCE else distance
