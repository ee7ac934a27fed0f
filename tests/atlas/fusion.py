# mypy: disable-error-code="import-untyped"
"""`$rankFusion`: reciprocal rank fusion of ranked pipelines.

The checks, their order, codes and messages are those of mongod's `document_source_rank_fusion.cpp` and
`document_source_hybrid_scoring_util.cpp`; the shape of `scoreDetails` is theirs too.
"""

from collections.abc import Mapping
from typing import Any

from secantus.ordering import sort_docs

from tests.atlas.metadata import Documents, Found, of
from tests.atlas.mirror import Key, key_of
from tests.atlas.paths import values
from tests.atlas.refusals import refusal

STAGE = "$rankFusion"
CONSTANT = 60
SELECTING = {"$limit", "$match", "$sample", "$skip", "$sort", "$vectorSearch", "$search", "$geoNear"}
RANKED = {"$search", "$vectorSearch", "$geoNear"}
HYBRID = {"$rankFusion", "$scoreFusion"}
_MUST_RANK = (
    "All subpipelines to the $rankFusion stage must begin with one of $search, $vectorSearch, $geoNear, or have a "
    "custom $sort in the pipeline."
)
DESCRIPTION = (
    "value output by reciprocal rank fusion algorithm, computed as sum of (weight * (1 / (60 + rank))) across input "
    "pipelines from which this document is output, from:"
)


def _fields(given: object, where: str, required: set[str], optional: set[str]) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        raise refusal(14, f"BSON field '{where}' is the wrong type, expected type 'object'")
    for name in given:
        if name not in required | optional:
            raise refusal(40415, f"BSON field '{where}.{name}' is an unknown field.")
    for name in sorted(required):
        if name not in given:
            raise refusal(40414, f"BSON field '{where}.{name}' is missing but a required field")
    return given


class Fusion:
    """A `$rankFusion`'s specification."""

    def __init__(self, given: object) -> None:
        if not isinstance(given, Mapping):
            raise refusal(9, f"{STAGE} must take a nested object but found: {given!r}")
        spec = _fields(given, STAGE, {"input"}, {"combination", "scoreDetails"})
        pipelines = _fields(spec["input"], f"{STAGE}.input", {"pipelines"}, set())["pipelines"]
        if not isinstance(pipelines, Mapping):
            raise refusal(14, f"BSON field '{STAGE}.input.pipelines' is the wrong type, expected type 'object'")
        if not pipelines:
            raise refusal(2, "A hybrid scoring stage should be run with at least one pipeline.")
        for name, pipeline in pipelines.items():
            _check_pipeline(pipeline)
            _check_name(name)
        self.details = spec.get("scoreDetails", False)
        if not isinstance(self.details, bool):
            raise refusal(14, f"BSON field '{STAGE}.scoreDetails' is the wrong type, expected type 'bool'")
        self.pipelines: dict[str, list[dict[str, Any]]] = {name: list(pipelines[name]) for name in sorted(pipelines)}
        weights: object = {}
        if "combination" in spec:
            weights = _fields(spec["combination"], f"{STAGE}.combination", {"weights"}, set())["weights"]
        self.weights = _weights(weights, self.pipelines)

    def fuse(self, ranked: Mapping[str, Documents]) -> Documents:
        """The documents that the pipelines found, by their fused score, ties by `_id`."""
        documents: dict[Key, dict[str, Any]] = {}
        ranks: dict[Key, dict[str, int]] = {}
        details: dict[Key, dict[str, dict[str, Any]]] = {}
        for name, found in ranked.items():
            for rank, document in zip(_ranks(found, self.pipelines[name]), found, strict=True):
                key = key_of(document.get("_id"))
                documents.setdefault(key, document)
                ranks.setdefault(key, {})[name] = rank
                score = of(document, "score")
                value = {"details": []} if score is None else {"value": score, "details": []}
                details.setdefault(key, {})[name] = value
        fused: Documents = []
        for key, document in documents.items():
            score = sum(self.weights[name] * (1 / (CONSTANT + rank)) for name, rank in ranks[key].items())
            metadata: dict[str, Any] = {"score": score}
            if self.details:
                metadata["scoreDetails"] = {
                    "value": score,
                    "description": DESCRIPTION,
                    "details": [
                        {
                            "inputPipelineName": name,
                            "rank": ranks[key].get(name, "NA"),
                            "weight": self.weights[name],
                            **details[key].get(name, {}),
                        }
                        for name in self.pipelines
                    ],
                }
            fused.append(Found(document, metadata))
        return sorted(sort_docs(fused, {"_id": 1}), key=lambda one: -of(one, "score"))


def _ranks(found: Documents, pipeline: list[dict[str, Any]]) -> list[int]:
    """The rank of each document: those that sort alike share one, as the window function `$rank` has it."""
    sorts = [stage["$sort"] for stage in pipeline if "$sort" in stage]
    if not sorts and "sort" in pipeline[0].get("$search", {}):
        sorts = [pipeline[0]["$search"]["sort"]]
    ranks: list[int] = []
    before: object = None
    for place, document in enumerate(found, 1):
        if sorts:
            key: object = [
                of(document, key["$meta"])
                if isinstance(key, Mapping) and "$meta" in key
                else list(values(document, name))
                for name, key in sorts[-1].items()
            ]
        else:
            key = of(document, "score")
        ranks.append(ranks[-1] if ranks and key is not None and key == before else place)
        before = key
    return ranks


def _check_pipeline(pipeline: object) -> None:
    if not isinstance(pipeline, list):
        raise refusal(14, "A pipeline must be an array of objects")
    if not pipeline:
        raise refusal(9834300, f"$rankFusion input pipeline cannot be empty. {_MUST_RANK}")
    for stage in pipeline:
        if not isinstance(stage, Mapping) or len(stage) != 1:
            raise refusal(40323, "A pipeline stage specification object must contain exactly one field.")
    names = [next(iter(stage)) for stage in pipeline]
    if HYBRID & set(names):
        raise refusal(
            10473002,
            f"$rankFusion input pipeline has a nested hybrid search stage ($rankFusion/$scoreFusion). {_MUST_RANK}",
        )
    if names[0] not in RANKED and "$sort" not in names:
        raise refusal(
            9191100,
            "Pipeline did not begin with a ranked stage and did not contain an explicit $sort stage. " + _MUST_RANK,
        )
    for name in names:
        if name not in SELECTING:
            raise refusal(
                9191103,
                f"{name} is not a selection stage because it modifies or transforms the input documents."
                " Only stages that retrieve, limit, or order documents are allowed.",
            )


def _check_name(name: str) -> None:
    context = "$rankFusion pipeline names must follow the naming rules of field path expressions. :: caused by :: "
    if not name:
        raise refusal(15998, context + "FieldPath field names may not be empty strings.")
    if name.startswith("$"):
        raise refusal(16410, f"{context}FieldPath field names may not start with '$', given '{name}'.")
    if "\0" in name:
        raise refusal(16411, context + "FieldPath field names may not contain '\\0'.")
    if "." in name:
        raise refusal(16412, f"{context}FieldPath field names may not contain '.'.")


def _weights(given: object, pipelines: Mapping[str, object]) -> dict[str, float]:
    if not isinstance(given, Mapping):
        raise refusal(14, f"BSON field '{STAGE}.combination.weights' is the wrong type, expected type 'object'")
    unknown = [name for name in given if name not in pipelines]
    weights = dict.fromkeys(pipelines, 1.0)
    for name, weight in given.items():
        if name in unknown:
            continue
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise refusal(13118, "BSON element is not a number")
        if weight < 0:
            raise refusal(
                9460300,
                f"rankFusion's pipeline weight must be non-negative, but given {weight} for pipeline '{name}'.",
            )
        weights[name] = float(weight)
    if len(given) > len(pipelines):
        raise refusal(
            9460301,
            f"$rankFusion input has more weights ({len(given)}) than pipelines ({len(pipelines)}). "
            "If 'combination.weights' is specified, there must be a less or equal number of weights as pipelines, each"
            f" of which is unique and existing. Possible extraneous specified weights = [{', '.join(unknown)}]",
        )
    if unknown:
        raise refusal(
            9967500,
            f"$rankFusion stage contained ({len(unknown)}) weight(s) in 'combination.weights' that did not reference "
            "valid pipeline names. Suggestions for valid pipeline names: "
            + ", ".join(f"(provided: '{name}' -> suggestions: [{', '.join(pipelines)}])" for name in unknown),
        )
    return weights
