"""Conversations whose workers are killed while a model answers: the turn is done by another, and stored once."""

import asyncio
import threading
from pathlib import Path

from temporalio.client import Client

from activities.conversation import conversation_workflow_id
from activities.models import ConversationReply, ConversationTurn, ConverseParams
from mcp_server.local.stack import Addresses
from tests.faults.bedrock_endpoint import Reply, serve_endpoint
from tests.faults.test_ingestion import StoreFile, Workers
from workflows.conversation import ConversationWorkflow, ConverseWorkflow


async def test_a_worker_killed_while_the_model_answers(
    temporal: Client, stack: Addresses, tmp_path: Path, user: str
) -> None:
    assert stack.temporal is not None
    never = threading.Event()
    with serve_endpoint() as bedrock:
        settings = bedrock.settings | bedrock.text_settings
        settings |= {"TEMPORAL_ADDRESS": stack.temporal, "TEMPORAL_TASK_QUEUE": user}
        bedrock.replies = [Reply("Half an answer", goes_on=never), Reply("The whole answer.")]
        workers = Workers(tmp_path, settings)
        async with workers.ending(), asyncio.timeout(120):
            await workers.start()
            params = ConverseParams(user_id=user, conversation_id="c", prompt="How long is a boat?")
            call = await temporal.start_workflow(ConverseWorkflow.run, params, id=f"converse-{user}", task_queue=user)
            while len(bedrock.replies) > 1:
                await asyncio.sleep(0.05)
            await workers.kill()
            await workers.start()

            reply = await call.result()

            assert isinstance(reply, ConversationReply)
            assert reply.answer == "The whole answer."
            conversation = temporal.get_workflow_handle(conversation_workflow_id(user, user, "c"))
            turns: list[ConversationTurn] = await conversation.query(ConversationWorkflow.history)
            assert [(turn.prompt, turn.reply.answer) for turn in turns] == [(params.prompt, reply.answer)]
            never.set()
        rows = StoreFile(tmp_path).rows("select message_id, message_type, text from conversations order by timestamp")
    assert rows == [
        (reply.message_id, "human", "How long is a boat?"),
        (reply.answer_id, "ai", "The whole answer."),
    ]
