"""What a detector is trained with: the section ``detection`` of a pipeline file."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from spptransfer.sections import CountFromZero, PositiveInt, Section

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class ProposalsSection(BaseModel):
    """A method that proposes windows, and its options: those of `open_proposer`."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = Field(
        "selective_search", description="selective_search, edge_boxes, grid, objectness or file"
    )


class DetectionSection(Section):
    """How windows are proposed, chosen for training, and become detections."""

    proposals: Annotated[ProposalsSection, BeforeValidator(_named)] = Field(
        ProposalsSection(), description="the method by its name, or with its options"
    )
    max_windows: PositiveInt = Field(2000, description="the most windows of an image")
    stride: PositiveInt | None = Field(
        None, description="stride of the maps, by dilation; null: the backbone's own"
    )
    context: Annotated[float, Field(gt=1, allow_inf_nan=False)] | None = Field(
        1.8,
        description="by how much a window is enlarged to be pooled once more, for what is around "
        "it; null: not at all",
    )
    positive_overlap: Share = Field(
        0.7,
        description="the least that a positive overlaps an object of the class; 1: only the "
        "object's own box is one",
    )
    negative_overlap: Share = Field(
        0.3, description="the most that a negative overlaps an object of the class"
    )
    negatives_per_image: PositiveInt = Field(
        10, description="windows drawn from each image before hard ones are looked for"
    )
    mining_rounds: CountFromZero = Field(1, description="passes that look for hard negatives")
    mined_per_image: PositiveInt = Field(
        10, description="hard negatives that a pass takes from an image at most"
    )
    intercept_scaling: Positive = Field(
        1.0, description="the larger, the less the bias is regularised"
    )
    box_regression: bool = Field(True, description="whether windows are moved towards objects")
    regression_overlap: Share = Field(
        0.6, description="the least that a window which trains the regression overlaps its object"
    )
    regression_penalty: Positive = Field(2.0, description="penalty of the ridge regression")
    vote_overlap: Share | None = Field(
        0.5,
        description="windows that overlap by at least so much vote for each other's score and "
        "place; null: they do not, as in the paper",
    )
    nms: Share = Field(
        0.2, description="the most that detections of a class overlap, before they are averaged"
    )
    detections_per_class: PositiveInt = Field(
        50, description="the most detections of a class in an image"
    )
    seed: CountFromZero = Field(0, description="of what is drawn")
    memory: str | None = Field(
        None, description="budget of the solver, as 2GB; null: half of what is free"
    )
