"""Images: prepare one for a vision model, and say in words what it shows."""

from typing import Literal

from temporalio import activity

from activities.beating import beating_for_source
from activities.bedrock import BedrockText
from activities.models import GenerateParams, ImageDescription, ImageParams, PreparedImage
from activities.reading import Reader
from activities.sources import SourceReader
from activities.store.contents import Contents

DESCRIBE = """Describe this image so that it can be found and its content be quoted: first its text, word for word and
in reading order; then what it shows: objects, people's actions, places; of charts, diagrams and tables all figures,
labels and relations. Write plain sentences or Markdown. Add nothing that can't be seen."""

DESCRIPTION_TOKENS = 2_000
"""Length of a description, at most."""


class ImageActivities:
    """
    Args:
        sources: Where images come from.
        contents: Where prepared ones are kept until they are used.
        reader: What decodes them.
        vision: What describes them; None where the text in them is recognised instead.
        max_side: Length in pixels of the longer side that a prepared image has at most.
    """

    def __init__(
        self, sources: SourceReader, contents: Contents, reader: Reader, vision: BedrockText | None, max_side: int
    ) -> None:
        self._sources = sources
        self._contents = contents
        self._reader = reader
        self._vision = vision
        self._max_side = max_side

    @activity.defn
    async def prepare_image(self, params: ImageParams) -> PreparedImage:
        """Turn an image upright, convert its colours to sRGB and shrink it, as PNG or JPEG without metadata."""
        name = prepared_content(str(activity.info().workflow_id))
        async with beating_for_source():
            content = await self._sources.read(params.source, params.roots)
            prepared = await self._reader.prepare_image(content, self._max_side)
            await self._contents.put(name, prepared.content)
        return PreparedImage(content=name, media_type=prepared.media_type, width=prepared.width, height=prepared.height)

    @activity.defn
    async def describe_image(self, image: PreparedImage) -> ImageDescription:
        """What a prepared image shows, by the vision model; else the text in it, where it can be recognised.

        Raises:
            ApplicationError: as `BedrockText.generate`.
        """
        async with beating_for_source():
            return await self._describe(image)

    async def _describe(self, image: PreparedImage) -> ImageDescription:
        content = await self._contents.get(image.content)
        if content is None:
            return ImageDescription(text=None, reason="The prepared image is gone; ingest it again.")
        if self._vision is not None:
            image_format: Literal["png", "jpeg"] = "png" if image.media_type == "image/png" else "jpeg"
            prompt = GenerateParams(system="", prompt=DESCRIBE, max_tokens=DESCRIPTION_TOKENS)
            answer = await self._vision.generate(prompt, {"format": image_format, "source": {"bytes": content}})
            return ImageDescription(text=answer.text)
        text = await self._reader.recognise(content)
        if text is None:
            return ImageDescription(
                text=None,
                reason="Nothing here can read images. Set VISION_MODEL_ID to a Bedrock model that takes images, or "
                "install the text recognition: pip install 'durable-context[ocr]'.",
            )
        return ImageDescription(text=text)


def prepared_content(workflow_id: str) -> str:
    """The content that is a workflow's prepared image: an activity that runs twice writes the same."""
    return f"{workflow_id}-prepared"
