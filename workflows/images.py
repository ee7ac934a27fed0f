"""Images: prepare one for a vision model."""

from datetime import timedelta

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from activities.images import ImageActivities
    from activities.models import ImageParams, PreparedImage
    from workflows.steps import DURABLY, HEARTBEAT, WRITE_GIVE_UP


@workflow.defn
class ImageProcessingWorkflow:
    """The image travels by reference; whoever uses the prepared one drops it."""

    @workflow.run
    async def run(self, params: ImageParams) -> PreparedImage:
        return await workflow.execute_activity_method(
            ImageActivities.prepare_image,
            params,
            task_queue=params.files_queue if params.source.path is not None else None,
            start_to_close_timeout=timedelta(minutes=10),
            schedule_to_close_timeout=WRITE_GIVE_UP,
            heartbeat_timeout=HEARTBEAT,
            retry_policy=DURABLY,
        )
