"""Requests and answers of each embedding model, against the shapes that AWS documents.

Titan: bedrock/latest/userguide/model-parameters-titan-embed-text.html. Cohere: …/model-parameters-embed-v3.html and
-v4.html. Nova: nova/latest/userguide/embeddings-schema.html.
"""

from typing import Any

import pytest
from temporalio.exceptions import ApplicationError

from activities.bedrock import BedrockEmbeddings, BedrockText
from activities.embedding_models import FAMILIES, base_model_id, embedding_family

TITAN_1 = "amazon.titan-embed-text-v1"
TITAN_2 = "amazon.titan-embed-text-v2:0"
NOVA = "amazon.nova-2-multimodal-embeddings-v1:0"
COHERE_3 = "cohere.embed-multilingual-v3"
COHERE_4 = "cohere.embed-v4:0"
LOCAL = "local.multilingual-e5-small"


def nova_body(purpose: str) -> dict[str, Any]:
    return {
        "schemaVersion": "nova-multimodal-embed-v1",
        "taskType": "SINGLE_EMBEDDING",
        "singleEmbeddingParams": {
            "embeddingPurpose": purpose,
            "embeddingDimension": 384,
            "text": {"truncationMode": "END", "value": "a"},
        },
    }


@pytest.mark.parametrize(
    ("model_id", "dimensions", "passage", "query"),
    [
        (TITAN_1, 1536, {"inputText": "a"}, {"inputText": "a"}),
        (
            TITAN_2,
            512,
            {"inputText": "a", "dimensions": 512, "normalize": True},
            {"inputText": "a", "dimensions": 512, "normalize": True},
        ),
        (NOVA, 384, nova_body("GENERIC_INDEX"), nova_body("TEXT_RETRIEVAL")),
        (
            COHERE_3,
            1024,
            {"texts": ["a"], "input_type": "search_document", "truncate": "END"},
            {"texts": ["a"], "input_type": "search_query", "truncate": "END"},
        ),
        (
            COHERE_4,
            256,
            {
                "texts": ["a"],
                "input_type": "search_document",
                "truncate": "RIGHT",
                "embedding_types": ["float"],
                "output_dimension": 256,
            },
            {
                "texts": ["a"],
                "input_type": "search_query",
                "truncate": "RIGHT",
                "embedding_types": ["float"],
                "output_dimension": 256,
            },
        ),
        (
            LOCAL,
            384,
            {"texts": ["a"], "input_type": "search_document", "truncate": "END"},
            {"texts": ["a"], "input_type": "search_query", "truncate": "END"},
        ),
    ],
)
def test_body(model_id: str, dimensions: int, passage: dict[str, Any], query: dict[str, Any]) -> None:
    family = embedding_family(model_id)
    assert dimensions in family.dimensions
    assert family.body(["a"], "passage", dimensions) == passage
    assert family.body(["a"], "query", dimensions) == query


@pytest.mark.parametrize(
    ("model_id", "answer", "vectors"),
    [
        (TITAN_1, {"embedding": [0.5, 1], "inputTextTokenCount": 1}, [[0.5, 1]]),
        (
            TITAN_2,
            {"embedding": [0.5, 1], "inputTextTokenCount": 1, "embeddingsByType": {"float": [0.5, 1]}},
            [[0.5, 1]],
        ),
        (NOVA, {"embeddings": [{"embeddingType": "TEXT", "embedding": [0.5], "truncatedCharLength": 9}]}, [[0.5]]),
        (
            COHERE_3,
            {"embeddings": [[0.5], [1]], "id": "i", "response_type": "embeddings_floats", "texts": ["a", "b"]},
            [[0.5], [1]],
        ),
        (
            COHERE_4,
            {"embeddings": {"float": [[0.5], [1]]}, "id": "i", "response_type": "embeddings_by_type"},
            [[0.5], [1]],
        ),
        (COHERE_4, {"embeddings": [[0.5], [1]], "response_type": "embeddings_floats"}, [[0.5], [1]]),
    ],
)
def test_answer(model_id: str, answer: dict[str, Any], vectors: list[list[float]]) -> None:
    assert embedding_family(model_id).vectors(answer) == vectors


@pytest.mark.parametrize(
    ("model_id", "base"),
    [
        *((model_id, model_id) for model_id in FAMILIES),
        *((f"{place}.{COHERE_4}", COHERE_4) for place in ("us", "eu", "apac", "global", "us-gov", "jp", "au", "ca")),
        (f"arn:aws:bedrock:us-east-1::foundation-model/{TITAN_2}", TITAN_2),
        (f"arn:aws-us-gov:bedrock:us-gov-west-1:123456789012:inference-profile/us-gov.{TITAN_2}", TITAN_2),
        (f"arn:aws:bedrock:eu-west-1:123456789012:inference-profile/eu.{COHERE_4}", COHERE_4),
    ],
)
def test_base_model_id(model_id: str, base: str) -> None:
    assert base_model_id(model_id) == base
    assert BedrockEmbeddings(model_id, None, None, "http://127.0.0.1:1").model.model_id == base


@pytest.mark.parametrize("model_id", FAMILIES)
def test_default_dimensions_come_first(model_id: str) -> None:
    default = {TITAN_1: 1536, TITAN_2: 1024, NOVA: 3072, COHERE_4: 1536, LOCAL: 384}.get(model_id, 1024)
    assert BedrockEmbeddings(model_id, None, None, "http://127.0.0.1:1").model.dimensions == default


@pytest.mark.parametrize(
    "model_id",
    [
        "cohere.embed-v5:0",
        "amazon.titan-embed-image-v1",
        "anthropic.claude-opus-4-7",
        "",
        "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/abcdef123456",
    ],
)
def test_unknown_model_names_the_setting_and_the_choice(model_id: str) -> None:
    with pytest.raises(ApplicationError) as caught:
        BedrockEmbeddings(model_id, None, None, None)
    assert caught.value.type == "not_configured"
    assert caught.value.non_retryable
    assert "EMBEDDING_MODEL_ID" in caught.value.message
    assert COHERE_4 in caught.value.message
    assert "123456789012" not in caught.value.message


@pytest.mark.parametrize(("model_id", "dimensions"), [(TITAN_1, 512), (TITAN_2, 1536), (COHERE_3, 384), (LOCAL, 256)])
def test_dimensions_that_a_model_lacks(model_id: str, dimensions: int) -> None:
    with pytest.raises(ApplicationError) as caught:
        BedrockEmbeddings(model_id, dimensions, None, "http://127.0.0.1:1")
    assert caught.value.type == "not_configured"
    assert f"EMBEDDING_DIMENSIONS {dimensions}" in caught.value.message
    assert str(embedding_family(model_id).dimensions[0]) in caught.value.message


def test_which_models_are_local_and_which_write() -> None:
    here = "http://127.0.0.1:1"
    assert BedrockEmbeddings(LOCAL, 384, None, here).local
    assert not BedrockEmbeddings(TITAN_2, 256, "eu-west-1", None).local
    extractive, claude = BedrockText("local.extractive", None, here), BedrockText("anthropic.claude", "eu-west-1", None)
    assert (extractive.local, extractive.generative) == (True, False)
    assert (claude.local, claude.generative) == (False, True)
    with pytest.raises(ValueError, match="needs the address"):
        BedrockText("local.extractive", None, None)


async def test_no_texts_need_no_call() -> None:
    assert await BedrockEmbeddings(LOCAL, None, None, "http://127.0.0.1:1").embed([], "passage") == []
