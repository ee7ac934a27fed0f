"""Hybrid search: embed the query, rank the user's chunks."""

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from activities.bedrock import BedrockActivities
    from activities.models import DocumentQuery, EmbedParams, HybridSearchParams, HybridSearchResult
    from activities.search import SearchActivities
    from workflows.steps import READ_GIVE_UP, step


@workflow.defn
class HybridSearchWorkflow:
    only_reads = True

    @staticmethod
    def embedded(params: HybridSearchParams) -> EmbedParams:
        """What the first step embeds."""
        return EmbedParams(texts=[params.query], side="query")

    @workflow.run
    async def run(self, params: HybridSearchParams) -> HybridSearchResult:
        embedded = await step(BedrockActivities.embed, self.embedded(params), give_up=READ_GIVE_UP)
        query = DocumentQuery(**params.model_dump(), embedding=embedded.vectors[0])
        return await step(SearchActivities.search_documents, query, give_up=READ_GIVE_UP)
