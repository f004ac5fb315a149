"""The pre-training pipeline file: its schema, how it is read, and how its mistakes are told."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from spptransfer.backbones import describe
from spptransfer.backbones.catalogue import PAPER
from spptransfer.config import PositiveFloat
from spptransfer.errors import ConfigError, suggestion
from spptransfer.sections import PathText, PositiveInt, Section, check, read_mapping

NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Share = Annotated[float, Field(ge=0, lt=1)]
Levels = Annotated[tuple[PositiveInt, ...], Field(min_length=1)]


class ImageFilesSection(Section):
    """Which images: a folder of class folders or a ZIP of one, which is never unpacked."""

    root: PathText = Field(description="folder or .zip file")
    train: str = Field("train", description="folder of class folders inside it; '' is the root")
    val: str | None = Field("val", description="likewise; null holds images of train out")
    holdout: _Share = Field(
        0.1, gt=0, description="share of every class held out where val is null"
    )
    licence: str | None = Field(None, description="the images' terms, for the model card")


class NetworkSection(Section):
    """Which network: one of the paper's, with its pyramid or another one."""

    name: str = Field("zf5", description="zf5, convnet-star-5, overfeat-5, ..., or -no-spp")
    levels: Levels | None = Field(None, description="pyramid; null is the catalogue's")
    dropout: _Share = Field(0.5, description="after both fully connected layers")

    @model_validator(mode="after")
    def _known(self) -> NetworkSection:
        if self.name not in PAPER:
            raise ValueError(f"unknown network '{self.name}': {suggestion(self.name, PAPER)}")
        return self


class ImagesSection(Section):
    """What the network is shown."""

    resize: PositiveInt = Field(256, description="smaller side of the whole image, in pixels")
    size: PositiveInt = Field(224, description="side of the crop")
    small: PositiveInt = Field(180, description="side to which crops are resized where sizes vary")
    sizes: Literal["single", "multi", "random"] = Field(
        "single", description="size alone; size and small by turns; or drawn from small to size"
    )
    crops: Literal["corners", "anywhere", "resized"] = Field(
        "corners", description="centre and corners; any place; or any place and area"
    )
    area: Annotated[float, Field(gt=0, le=1)] = Field(
        0.35, description="smallest share of the image in a crop, where crops are resized"
    )
    flip: bool = Field(True, description="mirror every other image")
    colour: NotNegative = Field(
        0.1, description="colour shift, in standard deviations along the principal colours"
    )

    @model_validator(mode="after")
    def _nested(self) -> ImagesSection:
        if not self.size <= self.resize:
            raise ValueError(f"size must be at most resize, {self.resize} pixels")
        if self.sizes != "single" and not self.small < self.size:
            raise ValueError(f"small must be less than size, {self.size} pixels")
        return self


class TrainingSection(Section):
    """How the weights are found: stochastic gradient descent with momentum."""

    epochs: PositiveInt = 70
    batch: PositiveInt = Field(128, description="images in a step, over all processes")
    schedule: Literal["plateau", "cosine"] = Field(
        "plateau", description="the rate is divided by 10 on plateaus, or falls as a cosine"
    )
    learning_rate: PositiveFloat = 0.01
    patience: PositiveInt = Field(5, description="epochs without a lower validation error")
    divisions: Annotated[int, Field(ge=0, strict=True)] = Field(
        2, description="how often the rate is divided"
    )
    warmup: NotNegative = Field(0.0, description="epochs over which the rate rises from 0")
    momentum: _Share = 0.9
    nesterov: bool = False
    weight_decay: NotNegative = 5e-4
    label_smoothing: _Share = 0.0
    seed: Annotated[int, Field(ge=0, lt=2**63, strict=True)] = 0
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto takes bfloat16 where the device multiplies such numbers"
    )
    checkpoint_every: PositiveInt = Field(500, description="steps between checkpoints")
    weights: Literal["float32", "float16"] = Field("float32", description="type of saved numbers")

    @model_validator(mode="after")
    def _possible(self) -> TrainingSection:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        if self.warmup >= self.epochs:
            raise ValueError(f"warmup must be shorter than the {self.epochs} epochs")
        return self


class DistillSection(Section):
    """A teacher whose pooled features the network also learns to predict from its last map."""

    backbone: str = Field(description="a name that `spptransfer backbones` lists")
    weights: PathText = Field("imagenet", description="a catalogue name or a file")
    layer: str = Field("spp", description="a map or a vector layer of the teacher")
    scale: PositiveInt = Field(128, description="smaller side of the image shown to the teacher")
    levels: Levels = Field((1,), description="n x n grids in which maps are pooled")
    pooling: Literal["mean", "max"] = Field("mean", description="how the teacher's maps are")
    student_pooling: Literal["mean", "max"] = Field("mean", description="how the network's are")
    loss: Literal["cosine", "mse"] = Field("cosine", description="after standardisation")
    weight: PositiveFloat = Field(1.0, description="of this loss beside the cross entropy")
    mirror: bool = Field(True, description="compute the mirrored images' features too")

    @model_validator(mode="after")
    def _known(self) -> DistillSection:
        try:
            info = describe(self.backbone)
            layer = info.layer(self.layer)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        if self.scale < info.min_side:
            raise ValueError(f"scale: '{self.backbone}' needs at least {info.min_side} pixels")
        if layer.kind == "vector" and self.levels != (1,):
            raise ValueError(f"levels must be [1], as '{self.layer}' is a vector")
        return self


class PretrainingPipeline(Section):
    """One pre-training: images, network, what it is shown, and how it learns.

    Examples
    --------
    >>> pipeline = parse_pretraining({"dataset": {"root": "photos"}})
    >>> pipeline.training.schedule, pipeline.images.size
    ('plateau', 224)
    """

    dataset: ImageFilesSection
    network: NetworkSection = NetworkSection()
    images: ImagesSection = ImagesSection()
    training: TrainingSection = TrainingSection()
    distill: DistillSection | None = None

    @model_validator(mode="after")
    def _fitting(self) -> PretrainingPipeline:
        spp = not self.network.name.endswith("-no-spp")
        if not spp and self.network.levels is not None:
            raise ValueError(f"network.levels: '{self.network.name}' has no pyramid to choose")
        if not spp and self.images.sizes != "single":
            raise ValueError("images.sizes: only a network with SPP learns from several sizes")
        smallest = self.images.size if self.images.sizes == "single" else self.images.small
        least = describe(self.network.name).min_side
        if smallest < least:
            raise ValueError(f"images: '{self.network.name}' needs at least {least} pixels")
        return self


def read_pretraining(
    path: str | os.PathLike[str], overrides: Sequence[str] = ()
) -> PretrainingPipeline:
    """Read and check a pre-training pipeline file, a YAML mapping.

    Each of the overrides, ``section.key=value``, replaces one value; values are YAML too. What
    is wrong is a `ConfigError`.
    """
    return parse_pretraining(read_mapping(path, PretrainingPipeline, overrides))


def parse_pretraining(values: Mapping[str, Any]) -> PretrainingPipeline:
    """Check a pre-training pipeline given as a mapping.

    Raises
    ------
    ConfigError
        As `read_pretraining`.

    Examples
    --------
    >>> parse_pretraining({"dataset": {"root": "photos"}, "training": {"epoch": 3}})
    Traceback (most recent call last):
        ...
    spptransfer.errors.ConfigError: unknown key 'training.epoch'; did you mean 'epochs'? ...
    """
    return check(PretrainingPipeline, values)
