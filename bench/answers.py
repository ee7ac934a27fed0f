"""How well the embedded text model answers by extraction: whether what it quotes holds the answer.

Asked are the questions of `search_questions.jsonl` about the sample documents, once with the passages that
`hybrid_search` finds, and once with those of other documents alone, where the right answer is that nothing bears on it.
Beside it stand what costs nothing, the beginning of the best passage, and what the model did before it could answer: a
summary of the passages.

Usage: python -m bench.answers
"""

import asyncio
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mcp import Client
from mcp.client.stdio import StdioServerParameters, stdio_client

from activities.bedrock_converse import BedrockChat
from activities.models import AnswerParams, ChatMessage, HybridSearchResult, Passage
from activities.passages import of_documents
from bench.search import Question, read_questions, write_corpus
from mcp_server.demo import CORPUS, embedded_environment
from mcp_server.local.answering import MAX_SENTENCES, NOTHING, PREFACE
from mcp_server.local.extractive import sentences, summarise, tokens
from mcp_server.local.stack import leased
from mcp_server.settings import LOCAL_TEXT_MODEL

PASSAGES = 6
HELD = 0.8
"""Part of the answer's words that a text must hold to count: an answer's phrase may run over two sentences."""


class Outcome(NamedTuple):
    """What became of one question.

    Attributes:
        retrieved: Whether a passage holds the answer.
        quoted: Whether the model's answer does.
        first: Whether its first quotation does.
        lead: Whether the first sentences of the best passage do.
        summary: Whether a summary of the passages does.
        sentences: How many the model quoted.
        quiet: Whether it said that nothing bears on it, given other documents' passages.
    """

    retrieved: bool
    quoted: bool
    first: bool
    lead: bool
    summary: bool
    sentences: int
    quiet: bool


def holds(text: str, answer: str) -> bool:
    """Whether a text holds enough of an answer's words."""
    wanted = set(tokens(answer))
    return len(wanted & set(tokens(text))) >= HELD * len(wanted)


async def ask(chat: BedrockChat, question: str, passages: Sequence[Passage]) -> str:
    messages = [ChatMessage(role="user", text=question)]
    reply = await chat.answer(
        AnswerParams(user_id="bench", messages=messages, passages=list(passages)), {}, lambda text: None
    )
    return reply.turn.text


async def try_out(client: Client, chat: BedrockChat, question: Question) -> Outcome:
    found = await client.call_tool("hybrid_search", {"query": question.question, "limit": 50}, read_timeout_seconds=60)
    passages = of_documents(HybridSearchResult.model_validate(found.structured_content))
    given = passages[:PASSAGES]
    others = [one for one in passages if Path(one.source).stem != question.source][:PASSAGES]
    said = await ask(chat, question.question, given)
    quoted = said.removeprefix(PREFACE).strip().splitlines() if said != NOTHING else []
    text = "\n".join(one.text for one in given)
    lead = " ".join(sentence.text for sentence in sentences(given[0].text)[:MAX_SENTENCES])
    return Outcome(
        retrieved=any(holds(one.text, question.answer) for one in given),
        quoted=holds(" ".join(quoted), question.answer),
        first=holds(" ".join(quoted[:1]), question.answer),
        lead=holds(lead, question.answer),
        summary=holds(summarise(text, 1000, MAX_SENTENCES).text, question.answer),
        sentences=len(quoted),
        quiet=await ask(chat, question.question, others) == NOTHING,
    )


async def measure() -> list[Outcome]:
    questions = [one for one in read_questions() if (CORPUS / f"{one.source}.md").exists()]
    with tempfile.TemporaryDirectory(prefix="durable-context-bench-", ignore_cleanup_errors=True) as folder:
        home, corpus = Path(folder, "home"), Path(folder, "corpus")
        home.mkdir()
        corpus.mkdir()
        write_corpus(corpus, questions)
        environment = embedded_environment(home)
        line = [sys.executable, "-m", "mcp_server.cli"]
        server = StdioServerParameters(command=line[0], args=[*line[1:], "serve"], env=environment, cwd=home)
        async with leased(home, ["temporal", "models"]) as addresses:
            ingest = await asyncio.create_subprocess_exec(*line, "ingest", str(corpus), env=environment, cwd=home)
            if await ingest.wait():
                raise RuntimeError("the corpus can't be ingested: see above")
            chat = BedrockChat(LOCAL_TEXT_MODEL, None, addresses.models)
            async with Client(stdio_client(server)) as client:
                return [await try_out(client, chat, question) for question in questions]


def main() -> None:
    outcomes = asyncio.run(measure())

    def count(name: str) -> str:
        return f"{sum(getattr(one, name) for one in outcomes):>4} of {len(outcomes)}"

    print(f"\n{'the passages hold the answer':<58}{count('retrieved')}")
    print(f"{'what the model quotes does':<58}{count('quoted')}")
    print(f"{'its first quotation does':<58}{count('first')}")
    print(f"{f'the first {MAX_SENTENCES} sentences of the best passage do':<58}{count('lead')}")
    print(f"{f'a summary of the passages in {MAX_SENTENCES} sentences does':<58}{count('summary')}")
    print(f"{'nothing bears on it, given passages of other documents':<58}{count('quiet')}")
    quoted = [one.sentences for one in outcomes if one.sentences]
    print(f"{'sentences quoted, where any are':<58}{sum(quoted) / len(quoted):>4.1f}")


if __name__ == "__main__":
    main()
