# mypy: disable-error-code="import-untyped"
"""The aggregation stages of Atlas Search, and where in a pipeline they may stand."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from secantus import aggregate, commands
from secantus.aggregate import PipelineContext, apply_pipeline
from secantus.commands import CommandContext
from secantus.storage import Storage

from tests.atlas import fusion, lexical, vectors
from tests.atlas.fusion import Fusion
from tests.atlas.indexes import Indexes
from tests.atlas.lexical import SearchIndex
from tests.atlas.metadata import Documents, Found, Handler
from tests.atlas.mirror import Key
from tests.atlas.refusals import refusal
from tests.atlas.vectors import VectorIndex

LISTING = "$listSearchIndexes"
SEARCHING = {lexical.STAGE, vectors.STAGE}


class Unfetched:
    """A storage that does not read the collection which a search stage replaces, and else is the storage."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._first = True

    def find_matching(self, *arguments: Any, **options: Any) -> Documents:
        if self._first:
            self._first = False
            return []
        found: Documents = self._storage.find_matching(*arguments, **options)
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)


def first_stage(pipeline: object) -> str | None:
    """The name of a pipeline's first stage, if it has one."""
    if isinstance(pipeline, list) and pipeline and isinstance(pipeline[0], Mapping) and pipeline[0]:
        return str(next(iter(pipeline[0])))
    return None


class Stages:
    """The stages, on the indexes of one server."""

    def __init__(self, indexes: Indexes, *, fusing: bool, allowed: str) -> None:
        self.indexes = indexes
        self.allowed = allowed
        self.names = {*SEARCHING, LISTING} | ({fusion.STAGE} if fusing else set())

    def register(self) -> None:
        """Put the stages into SecantusDB's tables, and let `aggregate` know of them."""
        aggregate._ATLAS_ONLY_STAGES = frozenset({"$searchMeta"})
        stages = aggregate._STAGES
        stages[lexical.STAGE] = self._search
        stages[vectors.STAGE] = self._vector_search
        stages[LISTING] = self._list
        if fusion.STAGE in self.names:
            stages[fusion.STAGE] = self._rank_fusion
        stages["$unionWith"] = self._union_with(stages["$unionWith"])
        commands._HANDLERS["aggregate"] = self._aggregate(commands._HANDLERS["aggregate"])

    def _aggregate(
        self, handler: Callable[[dict[str, Any], CommandContext], dict[str, Any]]
    ) -> Callable[[dict[str, Any], CommandContext], dict[str, Any]]:
        def run(command: dict[str, Any], context: CommandContext) -> dict[str, Any]:
            pipeline = command.get("pipeline")
            in_transaction = command.get("autocommit") is False
            if in_transaction or self._uses(pipeline):
                self._check(pipeline, None, in_transaction=in_transaction)
            if not self._uses(pipeline):
                return handler(command, context)
            if first_stage(pipeline) in self.names:
                context = dataclasses.replace(context, storage=Unfetched(context.storage))
            with self.indexes.lock:
                self.indexes.catch_up()
                return handler(command, context)

        return run

    def _uses(self, pipeline: object) -> bool:
        if not isinstance(pipeline, list):
            return False
        for stage in pipeline:
            if not isinstance(stage, Mapping):
                continue
            for name, spec in stage.items():
                if name in self.names:
                    return True
                if name == "$facet" and isinstance(spec, Mapping) and any(self._uses(one) for one in spec.values()):
                    return True
                if name in ("$lookup", "$unionWith") and isinstance(spec, Mapping) and self._uses(spec.get("pipeline")):
                    return True
        return False

    def _check(self, pipeline: object, inside: str | None, *, in_transaction: bool) -> None:
        """Refuse the stages where mongod does: after the first place, in `$facet`, in `$lookup`, in a transaction."""
        for place, stage in enumerate(pipeline if isinstance(pipeline, list) else []):
            if not isinstance(stage, Mapping) or len(stage) != 1:
                continue
            name, spec = next(iter(stage.items()))
            if in_transaction and name in self.names | {"$unionWith"}:
                raise refusal(263, f"Stage not supported inside of a multi-document transaction: {name}")
            if name in self.names:
                if inside == "$facet":
                    raise refusal(40600, f"{name} is not allowed to be used within a $facet stage")
                if inside == "$lookup":
                    raise refusal(51047, f"{name} is not allowed within a $lookup's sub-pipeline")
                if place:
                    raise refusal(40602, f"{name} is only valid as the first stage in a pipeline")
            elif name == "$facet" and isinstance(spec, Mapping):
                for one in spec.values():
                    self._check(one, name, in_transaction=in_transaction)
            elif name in ("$lookup", "$unionWith") and isinstance(spec, Mapping):
                self._check(spec.get("pipeline"), name, in_transaction=in_transaction)

    def _union_with(self, handler: Handler) -> Handler:
        def union(spec: Any, documents: Documents, context: PipelineContext) -> Documents:
            if isinstance(spec, Mapping) and first_stage(spec.get("pipeline")) in self.names:
                assert context.storage is not None
                context = dataclasses.replace(context, storage=Unfetched(context.storage))
            return handler(spec, documents, context)

        return union

    def _found(self, index: SearchIndex | VectorIndex, best: list[tuple[Key, float]], name: str) -> Documents:
        """The documents as they are now: an index may be behind, and what was deleted since is left out."""
        current = index.mirror.documents
        return [Found(current[key], {name: score, "score": score}) for key, score in best if key in current]

    def _search(self, spec: Any, _documents: Documents, context: PipelineContext) -> Documents:
        query = lexical.Query(spec)
        index = self.indexes.queried(lexical.STAGE, context.db_name, context.coll_name, query.index)
        if not isinstance(index, SearchIndex):
            return []
        return self._found(index, index.search(query), "searchScore")

    def _vector_search(self, spec: Any, _documents: Documents, context: PipelineContext) -> Documents:
        query = vectors.Query(spec)
        index = self.indexes.queried(vectors.STAGE, context.db_name, context.coll_name, query.index)
        if not isinstance(index, VectorIndex):
            return []
        return self._found(index, index.search(query), "vectorSearchScore")

    def _list(self, spec: Any, _documents: Documents, context: PipelineContext) -> Documents:
        if not isinstance(spec, Mapping):
            raise refusal(9, f"The {LISTING} stage specification must be an object.")
        for name, value in spec.items():
            if name not in ("id", "name"):
                raise refusal(40415, f"BSON field '{LISTING}.{name}' is an unknown field.")
            if not isinstance(value, str):
                raise refusal(14, f"BSON field '{LISTING}.{name}' is the wrong type, expected type 'string'")
        if len(spec) > 1:
            raise refusal(72, f"Cannot set both 'name' and 'id' for {LISTING}.")
        return self.indexes.listed(context.db_name, context.coll_name, spec)

    def _rank_fusion(self, spec: Any, _documents: Documents, context: PipelineContext) -> Documents:
        if self.allowed == "off":
            raise refusal(224, f"{fusion.STAGE} is not allowed in the current configuration.")
        given = Fusion(spec)
        if given.details and self.allowed == "basic":
            raise refusal(224, "'featureFlagRankFusionFull' must be enabled to use scoreDetails")
        for pipeline in given.pipelines.values():
            self._check(pipeline, None, in_transaction=False)
        ranked: dict[str, Documents] = {}
        assert context.storage is not None
        for name, pipeline in given.pipelines.items():
            documents: Documents = []
            if first_stage(pipeline) not in SEARCHING:
                documents = context.storage.find_matching(context.db_name, context.coll_name, {})
            ranked[name] = apply_pipeline(documents, pipeline, context)
        return given.fuse(ranked)
