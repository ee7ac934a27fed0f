"""Embeddings as the stores take them."""

from array import array
from math import isfinite

from activities.errors import failure
from activities.models import EmbeddingModel


def searchable(embedding: bytes, model: EmbeddingModel) -> bytes | None:
    """An embedding by `model` as it is indexed: None for a vector of zeros, whose cosine with anything is undefined.

    Raises:
        ApplicationError: `rejected` for one of another length, or that isn't finite.
    """
    dimensions = len(embedding) / 4
    if dimensions != model.dimensions:
        raise failure(
            "rejected",
            f"the embedding has {dimensions:g} dimensions, but {model.model_id} has {model.dimensions}",
        )
    values = array("f", embedding)
    if not isfinite(sum(values)):
        raise failure("rejected", "the embedding holds a number that isn't finite")
    return embedding if any(values) else None
