"""What happens to an image before a backbone sees it, in the words of a feature spec."""

from __future__ import annotations

from typing import Any

from spptransfer import backbones, images
from spptransfer.errors import ModelError
from spptransfer.spec import NUMERICS_VERSION, FeatureSpec


def preprocessing_of(backbone: str) -> dict[str, Any]:
    """Everything between a file and a backbone's input that a feature's value depends on.

    Parameters
    ----------
    backbone : str
        A name that `spptransfer.backbones.names` lists.

    Returns
    -------
    dict
        Plain JSON values.

    Examples
    --------
    >>> preprocessing_of("alexnet")["mean"]
    [0.485, 0.456, 0.406]
    """
    info = backbones.describe(backbone)
    return {**images.description(), "mean": list(info.mean), "std": list(info.std)}


def check_current(spec: FeatureSpec) -> None:
    """Make sure that features computed now are those that a model was trained on.

    Raises
    ------
    ModelError
        If images were decoded, resized or computed in another way.
    """
    now = (preprocessing_of(spec.backbone), NUMERICS_VERSION)
    if (spec.preprocessing, spec.numerics) != now:
        raise ModelError(
            "the model was trained on features of another version of spptransfer, which decoded, "
            "resized or computed images in another way: train it again"
        )
