"""The embedding models that can be called: what each one is asked, and where its answer holds the vectors.

Request and response bodies are those of AWS's documentation: *Amazon Titan Text Embeddings*, *Cohere Embed v3* and *v4*
in the Bedrock user guide, and *Complete embeddings request and response schema* in the Amazon Nova user guide.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from activities.errors import failure
from activities.models import EmbeddingModel, Side

Body = dict[str, Any]


@dataclass(frozen=True)
class EmbeddingFamily:
    """How one sort of embedding model is called.

    Attributes:
        dimensions: Lengths its vectors can have, the default first.
        batch: Texts in a call, at most.
        calls: Calls in flight for one list of texts.
        max_characters: Length of a text beyond which the model refuses it; the rest of it is left out.
        body: Builds a request's body from texts, side and dimensions.
        vectors: Reads the vectors, one for each text in order, from the body of the answer.
    """

    dimensions: tuple[int, ...]
    batch: int
    calls: int
    max_characters: int | None
    body: Callable[[Sequence[str], Side, int], Body]
    vectors: Callable[[Body], list[list[float]]]


def _titan_v1_body(texts: Sequence[str], side: Side, dimensions: int) -> Body:
    return {"inputText": texts[0]}


def _titan_v2_body(texts: Sequence[str], side: Side, dimensions: int) -> Body:
    return {"inputText": texts[0], "dimensions": dimensions, "normalize": True}


def _titan_vectors(answer: Body) -> list[list[float]]:
    return [answer["embedding"]]


def _cohere_v3_body(texts: Sequence[str], side: Side, dimensions: int) -> Body:
    input_type = "search_query" if side == "query" else "search_document"
    return {"texts": list(texts), "input_type": input_type, "truncate": "END"}


def _cohere_v4_body(texts: Sequence[str], side: Side, dimensions: int) -> Body:
    # Version 4 renamed the truncation sides.
    return _cohere_v3_body(texts, side, dimensions) | {
        "truncate": "RIGHT",
        "embedding_types": ["float"],
        "output_dimension": dimensions,
    }


def _cohere_vectors(answer: Body) -> list[list[float]]:
    # Keyed by type where types were asked for; the documentation of version 4 shows a bare list for a single one.
    embeddings = answer["embeddings"]
    vectors: list[list[float]] = embeddings["float"] if isinstance(embeddings, dict) else embeddings
    return vectors


def _nova_body(texts: Sequence[str], side: Side, dimensions: int) -> Body:
    return {
        "schemaVersion": "nova-multimodal-embed-v1",
        "taskType": "SINGLE_EMBEDDING",
        "singleEmbeddingParams": {
            "embeddingPurpose": "TEXT_RETRIEVAL" if side == "query" else "GENERIC_INDEX",
            "embeddingDimension": dimensions,
            "text": {"truncationMode": "END", "value": texts[0]},
        },
    }


def _nova_vectors(answer: Body) -> list[list[float]]:
    return [item["embedding"] for item in answer["embeddings"]]


_COHERE_V3 = EmbeddingFamily((1024,), 96, 4, 2048, _cohere_v3_body, _cohere_vectors)

FAMILIES: dict[str, EmbeddingFamily] = {
    "amazon.titan-embed-text-v1": EmbeddingFamily((1536,), 1, 8, 50_000, _titan_v1_body, _titan_vectors),
    "amazon.titan-embed-text-v2:0": EmbeddingFamily((1024, 512, 256), 1, 8, 50_000, _titan_v2_body, _titan_vectors),
    "amazon.nova-2-multimodal-embeddings-v1:0": EmbeddingFamily(
        (3072, 1024, 384, 256), 1, 8, 8192, _nova_body, _nova_vectors
    ),
    "cohere.embed-english-v3": _COHERE_V3,
    "cohere.embed-multilingual-v3": _COHERE_V3,
    "cohere.embed-v4:0": EmbeddingFamily((1536, 1024, 512, 256), 96, 4, None, _cohere_v4_body, _cohere_vectors),
    # It computes on this machine, one slice at a time: small calls, one after the other, keep clear of the time-out.
    "local.multilingual-e5-small": EmbeddingFamily((384,), 8, 1, 2048, _cohere_v3_body, _cohere_vectors),
}


def base_model_id(model_id: str) -> str:
    """The foundation model's id, without what an ARN or a cross-region inference profile (`eu.…`) puts before it."""
    name = model_id.rsplit("/", 1)[-1] if model_id.startswith("arn:") else model_id
    return re.sub(r"^[a-z]+(-gov)?\.(?=[a-z0-9-]+\.)", "", name)


def is_e5(model_id: str) -> bool:
    """Whether a model's cosines have the range of E5's."""
    return "e5" in model_id


def unrelated_cosine(model_id: str) -> float:
    """Cosine similarity that texts about different things have by a model.

    E5 was trained with a low temperature, which leaves its cosines between 0.7 and 1 (its authors say so on its page);
    0.75 was measured for the embedded one. For others 0 is a cautious guess.
    """
    return 0.75 if is_e5(model_id) else 0.0


def relevance(cosine: float, unrelated: float) -> float:
    """A cosine on a scale from 0, where texts are about different things, to 1, where they are the same."""
    return min(1.0, max(0.0, (cosine - unrelated) / (1 - unrelated)))


def embedding_family(model_id: str) -> EmbeddingFamily:
    """How the embedding model `model_id` is called.

    Raises:
        ApplicationError: `not_configured` for a model that this server doesn't know.
    """
    family = FAMILIES.get(base_model_id(model_id))
    if family is None:
        known = ", ".join(FAMILIES)
        raise failure(
            "not_configured",
            f"EMBEDDING_MODEL_ID '{shown_model_id(model_id)}' isn't an embedding model this server knows; use "
            f"one of {known}, or an inference profile named after one.",
        )
    return family


def embedding_model(model_id: str, dimensions: int | None) -> EmbeddingModel:
    """What fills a collection where the embedding model is `model_id`.

    Args:
        model_id: A foundation model's id, an inference profile's id, or the ARN of either.
        dimensions: Length of the vectors; None for the model's default.

    Raises:
        ApplicationError: `not_configured` where the model isn't known, or can't have these dimensions.
    """
    allowed = embedding_family(model_id).dimensions
    if dimensions is not None and dimensions not in allowed:
        choice = ", ".join(str(number) for number in allowed)
        raise failure(
            "not_configured",
            f"EMBEDDING_DIMENSIONS {dimensions} isn't a length that model {shown_model_id(model_id)} offers; "
            f"use {choice}, or unset it.",
        )
    # An inference profile changes where a model runs, not its vectors: a collection goes by the model.
    return EmbeddingModel(model_id=base_model_id(model_id), dimensions=dimensions or allowed[0])


def shown_model_id(model_id: str) -> str:
    """A model id fit for messages: an ARN's account is nobody's business."""
    return model_id.rsplit("/", 1)[-1] if model_id.startswith("arn:") else model_id
