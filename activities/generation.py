"""Answers: one invocation of the text model at a time, which whoever watches can follow."""

from collections.abc import Sequence

from temporalio import activity

from activities.beating import beating
from activities.bedrock_converse import BedrockChat
from activities.errors import failure
from activities.models import AnswerParams, GenerationMeans, ModelReply, PartialAnswer
from activities.store.contents import Contents

MAX_IMAGES = 4
"""Images of a conversation that a model sees, the latest: each costs as much as a thousand words, every turn anew."""

PARTIAL_CHARACTERS = 50_000
"""Length to which a partial answer is cut: a heartbeat is no place for a book."""


class GenerationActivities:
    """
    Args:
        chat: The text model.
        contents: Where the images of messages are.
        web_search: Whether the web can be searched.
        servers: Names of the other MCP servers whose tools may be called.
    """

    def __init__(self, chat: BedrockChat, contents: Contents, web_search: bool, servers: Sequence[str]) -> None:
        self._chat = chat
        self._contents = contents
        self._means = GenerationMeans(generative=chat.generative, web_search=web_search, servers=list(servers))

    @activity.defn
    async def generation_means(self) -> GenerationMeans:
        """What there is to answer with."""
        return self._means

    @activity.defn
    async def generate_answer(self, params: AnswerParams) -> ModelReply:
        """Ask the model once. The details of the heartbeats are the answer so far, a `PartialAnswer`.

        Raises:
            ApplicationError: as `BedrockChat.answer`; `rejected` where the image in question is gone.
        """
        number = len(params.turns) // 2 + 1
        partial = [PartialAnswer(text="", round=number)]

        def told(text: str) -> None:
            partial[0] = PartialAnswer(text=text[:PARTIAL_CHARACTERS], round=number)

        async with beating(partial):
            return await self._chat.answer(params, await self._images(params), told)

    async def _images(self, params: AnswerParams) -> dict[str, bytes]:
        """The latest images of the messages that are still kept, by the names of their contents."""
        if not self._chat.generative:
            return {}
        found: dict[str, bytes] = {}
        shown = [message.image for message in params.messages if message.image is not None]
        for image in shown[-MAX_IMAGES:]:
            content = await self._contents.get(image.content)
            if content is not None:
                found[image.content] = content
            elif image is params.messages[-1].image:
                raise failure("rejected", "The image of this message isn't kept any longer. Send it again.")
        return found
