"""Web search: one activity, since it can be slow and flaky."""

from datetime import timedelta

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from activities.models import WebSearchParams, WebSearchResult
    from activities.web import WebActivities
    from workflows.steps import DURABLY, READ_GIVE_UP


@workflow.defn
class WebSearchWorkflow:
    @workflow.run
    async def run(self, params: WebSearchParams) -> WebSearchResult:
        return await workflow.execute_activity_method(
            WebActivities.search_web,
            params,
            start_to_close_timeout=timedelta(seconds=35),
            schedule_to_close_timeout=READ_GIVE_UP,
            retry_policy=DURABLY,
        )
