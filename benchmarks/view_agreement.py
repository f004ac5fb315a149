"""Do windows on maps say what crops say, and by which rule for the cells of a window?

Compares 10-maps with 10-crops, as in docs/evaluating-backbones.md; the first rule is ours.

    python benchmarks/view_agreement.py spp-mini embedded tiny-imagenet-40k.zip 64 72
"""

import argparse

import numpy as np
import torch

from spptransfer import backbones
from spptransfer.pretraining.evaluation import ViewAverager, load_classifier, make_scheme
from spptransfer.pretraining.evaluation_views import render_scales
from spptransfer.pretraining.source import LabelledFiles
from spptransfer.pretraining.views import first_cell


@torch.inference_mode()
def centre_of_first_cell(name: str, stride: int) -> float:
    """The pixel that cell 0 of the map looks at: a NaN in the image goes wherever it is seen."""
    with torch.device("meta"):
        trunk = backbones.network(name).trunk("spp")
    trunk = trunk.to_empty(device="cpu").eval()
    for tensor in (*trunk.parameters(), *trunk.buffers()):
        tensor.zero_()
    ends = []
    for pixel in range(40 * stride, 41 * stride):
        probe = torch.zeros(1, 3, 4 * stride, 80 * stride)
        probe[..., pixel] = torch.nan
        seen = trunk(probe).isnan().any(dim=1).any(dim=1)[0].nonzero().flatten()
        ends += [pixel - stride * int(seen[-1]), pixel - stride * int(seen[0])]
    return (min(ends) + max(ends)) / 2


class Ruled(ViewAverager):
    """Windows on maps get the cells that a rule gives them: from a cell, to before another."""

    def rules(self, size: int):
        stride, cells = self.classifier.stride, self.classifier.cells(size)
        centre = centre_of_first_cell(self.classifier.info.name, stride)
        return {
            "this rule": lambda pixel, of: (at := first_cell(pixel, stride, cells, of), at + cells),
            "inside": lambda pixel, of: (
                max(0, -int((centre - pixel) // stride)),
                min(of, -int((centre - pixel - size) // stride)),
            ),
            "the paper's, literally": lambda pixel, of: (
                min(of - 1, pixel // stride + 1),
                min(of, -(-(pixel + size) // stride)),
            ),
        }

    def _on_maps(self, pixels, corners, size):
        maps = self._maps(pixels)
        tall, wide = maps.shape[2:]
        for top, left in corners:
            rows, columns = slice(*self.rule(top, tall)), slice(*self.rule(left, wide))
            yield self.classifier.pool(maps[:, :, rows, columns]), 1


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
for name in ("network", "weights", "data"):
    parser.add_argument(name)
parser.add_argument("size", type=int)
parser.add_argument("resize", type=int)
parser.add_argument("--split", default="val", help="folder with a folder per class; '' is all")
parser.add_argument("--images", type=int, default=1000)
options = parser.parse_args()
files = LabelledFiles.open(options.data, options.split)
averager = Ruled(load_classifier(options.network, options.weights))
sizes = {"size": options.size, "resize": options.resize}
crops, maps = (make_scheme(name, **sizes) for name in ("10-crops", "10-maps"))
rules = averager.rules(options.size)
found = {name: [] for name in rules}
for number in np.linspace(0, len(files) - 1, options.images).astype(int):
    views = render_scales([files[number][0]], maps)
    expected = averager.probabilities(views, crops)[0]
    for name, averager.rule in rules.items():
        got = averager.probabilities(views, maps)[0]
        found[name].append((got.argmax() == expected.argmax(), np.abs(got - expected).sum()))
for name, pairs in found.items():
    same, distance = np.mean(pairs, axis=0)
    print(f"{name}: {100 * same:.1f} %, {distance:.3f}")
