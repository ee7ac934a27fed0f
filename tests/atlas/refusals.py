# mypy: disable-error-code="import-untyped"
"""The errors of the stand-in, in the shapes that mongod and mongot give them."""

from secantus.aggregate import AggregateError

NAMES = {
    2: "BadValue",
    8: "UnknownError",
    9: "FailedToParse",
    26: "NamespaceNotFound",
    27: "IndexNotFound",
    68: "IndexAlreadyExists",
    224: "QueryFeatureNotAllowed",
    263: "OperationNotSupportedInTransaction",
    8000: "AtlasError",
    40414: "IDLFailedToParse",
    40415: "IDLUnknownField",
}


def refusal(code: int, message: str) -> AggregateError:
    """An error of mongod's own."""
    return AggregateError(message, code=code, code_name=NAMES.get(code, f"Location{code}"))


def from_mongot(stage: str, message: str) -> AggregateError:
    """An error of mongot's, as mongod passes it on: UnknownError, with the plan executor's prefix.

    `$search` opens its cursor inside the stage, which adds "Remote error from mongot"; `$vectorSearch` does not.
    """
    remote = "Remote error from mongot :: caused by :: " if stage == "$search" else ""
    return refusal(8, f"PlanExecutor error during aggregation :: caused by :: {remote}{message}")
