"""Answer a request to a served model, unless it is too large."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from pydantic import Field, PositiveFloat, PositiveInt

from thawline.data.decoding import ImageError, Source, image_size
from thawline.errors import DataError
from thawline.evaluation.inference import PredictedBatch, answer, predict_batches
from thawline.networks.classifier import Classifier
from thawline.options import Options

BATCH_SIZE = 32


class RequestLimits(Options):
    """The largest request that a served model answers. Images given as paths do not count."""

    max_images: PositiveInt = Field(256, description="images per request")
    max_mb: PositiveFloat = Field(100, description="MB (10^6 bytes) per request")
    max_megapixels: PositiveFloat = Field(89, description="million pixels per image")


def check_request(images: Sequence[Any], limits: RequestLimits, takes_paths: bool = True) -> None:
    """Check the number, bytes and headers of the images of a request.

    Raises:
        DataError: names the limit, and an image by its position, from 1.
    """
    paths = [number for number, image in enumerate(images, 1) if not isinstance(image, bytes)]
    if paths and not takes_paths:
        raise DataError(
            f"Image {paths[0]} is not the bytes of a file. A server opens no paths; send the"
            " content as base64 in JSON."
        )
    contents = {number: i for number, i in enumerate(images, 1) if isinstance(i, bytes)}
    if len(contents) > limits.max_images:
        raise DataError(
            f"The request has {len(contents)} images, but max_images is {limits.max_images}. Split"
            " it into smaller requests."
        )
    megabytes = sum(len(content) for content in contents.values()) / 1e6
    if megabytes > limits.max_mb:
        raise DataError(
            f"The request has {megabytes:.1f} MB, but max_mb is {limits.max_mb:g}. Send fewer or"
            " smaller images."
        )
    for number, content in contents.items():
        try:
            width, height = image_size(content)
        except ImageError as error:
            raise DataError(f"Image {number} cannot be read: {error.problem}.") from error
        if width * height > limits.max_megapixels * 1e6:
            raise DataError(
                f"Image {number} has {width} x {height} px, but max_megapixels is"
                f" {limits.max_megapixels:g}. Send a smaller one."
            )


def classify(classifier: Classifier, images: Sequence[Source], top_k: int = 1) -> pd.DataFrame:
    """Return the `inference.answer` for each image, given as a path or as the bytes of a file.

    Raises:
        DataError: if an image cannot be read; it is named by its position, from 1.
    """
    nothing = torch.empty(0, len(classifier.class_names))
    empty = PredictedBatch(nothing, nothing, (), torch.empty(0), nothing)
    tables = [answer(empty, classifier, top_k)]
    for idx, batch in enumerate(predict_batches(classifier, images, BATCH_SIZE)):
        for number, problem in enumerate(batch.problems, idx * BATCH_SIZE + 1):
            if problem:
                raise DataError(f"Image {number} cannot be read: {problem}.")
        tables.append(answer(batch, classifier, top_k))
    return pd.concat(tables, ignore_index=True)
