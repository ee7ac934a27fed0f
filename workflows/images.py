"""Images: prepare one for a vision model."""

import asyncio
from datetime import timedelta

from temporalio import workflow
from temporalio.exceptions import FailureError

with workflow.unsafe.imports_passed_through():
    from activities.documents import DocumentActivities
    from activities.images import ImageActivities, prepared_content
    from activities.models import ContentNames, ImageParams, PreparedImage
    from workflows.steps import DURABLY, HEARTBEAT, TO_ITS_END, WRITE_GIVE_UP, end_if_cancelled, step


@workflow.defn
class ImageProcessingWorkflow:
    """The image travels by reference; whoever uses the prepared one drops it."""

    @workflow.run
    async def run(self, params: ImageParams) -> PreparedImage:
        try:
            prepared = await workflow.execute_activity_method(
                ImageActivities.prepare_image,
                params,
                task_queue=params.files_queue if params.source.path is not None else None,
                start_to_close_timeout=timedelta(minutes=10),
                schedule_to_close_timeout=WRITE_GIVE_UP,
                heartbeat_timeout=HEARTBEAT,
                retry_policy=DURABLY,
                cancellation_type=TO_ITS_END,
            )
            end_if_cancelled()
            return prepared
        except (asyncio.CancelledError, FailureError):
            name = prepared_content(workflow.info().workflow_id)
            await step(DocumentActivities.drop_contents, ContentNames(names=[name]))
            raise
