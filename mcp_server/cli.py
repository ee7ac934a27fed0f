"""The command `durable-context`."""

import argparse
import asyncio
import os
import sys
from collections.abc import Coroutine
from importlib.metadata import version
from typing import Any

from mcp_server.settings import Settings, SettingsError, load_settings


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the result is the process's exit status."""
    # Whatever any command writes holds users' texts.
    os.umask(0o077)
    options = build_parser().parse_args(arguments)
    try:
        status: int = options.run(options)
        return status
    except SettingsError as error:
        print(f"durable-context: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("durable-context: interrupted; run the command again to go on", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    parser = argparse.ArgumentParser(
        prog="durable-context",
        description="An MCP server that gives any agent durable context. Settings are environment variables or lines "
        "of a .env file; the README lists them.",
        epilog="example: durable-context serve",
    )
    parser.add_argument("--version", action="version", version=f"durable-context {version('durable-context')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    serve = commands.add_parser(
        "serve",
        help="serve MCP clients, over stdio or HTTP",
        description="Serve MCP: one client over stdio, or any number over streamable HTTP at /mcp.",
        epilog="example: durable-context serve --transport http --port 8000",
    )
    serve.add_argument("--transport", choices=("stdio", "http"), default="stdio", help="default: stdio")
    serve.add_argument("--host", default="127.0.0.1", help="HTTP only: address to listen on (default: 127.0.0.1)")
    serve.add_argument("--port", type=_port, default=8000, help="HTTP only: port, 0 for any free one (default: 8000)")
    serve.add_argument(
        "--no-worker", action="store_true", help="only start workflows; `durable-context worker` runs them"
    )
    serve.set_defaults(run=_serve)

    worker = commands.add_parser(
        "worker",
        help="run the work of servers elsewhere",
        description="A headless worker: as many as wanted, on any machine that reaches the same Temporal, store and "
        "models.",
        epilog="example: TEMPORAL_ADDRESS=temporal.example.com:7233 durable-context worker",
    )
    worker.set_defaults(run=_worker)

    ingest = commands.add_parser(
        "ingest",
        help="put documents into the store",
        description="Read, chunk, embed and store documents: files, those in folders, web pages, and the pages of "
        "sitemaps. Unchanged ones are skipped; a changed one replaces its old chunks. It may be interrupted and run "
        "again: it goes on where it was.",
        epilog="example: durable-context ingest notes/ handbook.pdf https://example.com/ --exclude 'drafts/**'",
    )
    ingest.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="a file, a folder to look through, the URL of a page, or that of a sitemap (ending in .xml)",
    )
    ingest.add_argument(
        "--include", action="append", default=[], metavar="GLOB", help="of folders and sitemaps, take only what fits"
    )
    ingest.add_argument(
        "--exclude", action="append", default=[], metavar="GLOB", help="of folders and sitemaps, leave out what fits"
    )
    _add_owner(ingest)
    ingest.add_argument("--collection", type=_name, metavar="NAME", default="documents", help="default: documents")
    ingest.set_defaults(run=_ingest)

    documents = commands.add_parser(
        "documents",
        help="list and remove what was ingested",
        description="List a user's documents, or remove some.",
        epilog="example: durable-context documents list --collection work",
    )
    actions = documents.add_subparsers(title="actions", metavar="ACTION", required=True)
    listing = actions.add_parser(
        "list",
        help="list documents",
        description="A line for each document: its id, when it was stored, how many chunks it has, its collection and "
        "its source.",
        epilog="example: durable-context documents list --user-id alice",
    )
    listing.set_defaults(run=_list_documents)
    removing = actions.add_parser(
        "remove",
        help="remove documents",
        description="Remove documents with all of their chunks, by source or id as `documents list` shows them.",
        epilog="example: durable-context documents remove https://example.com/ --collection work",
    )
    removing.add_argument("sources", nargs="+", metavar="SOURCE", help="a path, a URL, a name, or a document's id")
    removing.set_defaults(run=_remove_documents)
    for action in (listing, removing):
        _add_owner(action)
        action.add_argument("--collection", type=_name, metavar="NAME", help="default: all of the user's")

    chat = commands.add_parser(
        "chat",
        help="hold a conversation",
        description="Talk with the model that LLM_MODEL_ID names, which draws on the user's documents, memories and "
        "earlier conversations. A conversation outlives this process: attach to it again from here or elsewhere. Lines "
        "can also be piped in, each a message. /end ends the conversation with a summary; /help names the other "
        "commands.",
        epilog="example: durable-context chat --conversation travel",
    )
    chat.add_argument(
        "--conversation", type=_name, metavar="ID", help="the conversation to attach to (default: a new one)"
    )
    chat.add_argument("--user-id", type=_name, metavar="NAME", help="who is talking (default: DEFAULT_USER_ID)")
    for use, what in (
        ("cache", "answer anew, also where an answer is cached"),
        ("memory", "draw on no other conversations"),
        ("search", "draw on no documents"),
    ):
        chat.add_argument(f"--no-{use}", action="store_true", help=what)
    chat.set_defaults(run=_chat)

    index = commands.add_parser(
        "index",
        help="create and check the indexes of the store in Atlas",
        description="Create what is missing of the vector, full-text and other indexes that the store in MongoDB Atlas "
        "needs, mend those that differ, and wait until all can be queried. Run it once before the first start, and "
        "after changing the embedding model or VECTOR_QUANTIZATION. It may be interrupted and run again.",
        epilog="example: durable-context index --check",
    )
    index.add_argument(
        "--check", action="store_true", help="only report; exit status 1 if anything is missing or differs"
    )
    index.set_defaults(run=_index)

    reembed = commands.add_parser(
        "reembed",
        help="move the store to another embedding model",
        description="Embed all documents, messages, memories and cached queries anew with the model that "
        "EMBEDDING_MODEL_ID names, then switch to it. Servers on the old model go on searching and storing until then; "
        "restart them with the new settings after it. A run that was interrupted goes on where it was when the command "
        "is run again.",
        epilog="example: EMBEDDING_MODEL_ID=amazon.titan-embed-text-v2:0 durable-context reembed",
    )
    reembed.set_defaults(run=_reembed)

    doctor = commands.add_parser(
        "doctor",
        help="check every piece of the stack",
        description="Say for each piece whether it is remote or embedded, reachable, which version or model it is, and "
        "what to fix. Exit status 0 only if all that is needed is usable.",
        epilog="example: durable-context doctor",
    )
    doctor.set_defaults(run=_doctor)

    demo = commands.add_parser(
        "demo",
        help="show it all on sample documents",
        description="Start the embedded stack in a temporary folder, connect an MCP client over stdio, ingest the "
        "sample documents, call every tool, and show the answers and the workflows behind them.",
        epilog="example: durable-context demo",
    )
    demo.set_defaults(run=_demo)

    token = commands.add_parser(
        "token",
        help="make a bearer token for HTTP",
        description="Make a token for a user. It is shown once; the entry for AUTH_TOKENS or the tokens file holds its "
        "hash.",
        epilog="example: durable-context token alice",
    )
    token.add_argument("user", type=_token_user, metavar="USER", help="the user that the token stands for")
    token.set_defaults(run=_token)
    return parser


def _add_owner(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--user-id", type=_name, metavar="NAME", help="whose documents they are (default: DEFAULT_USER_ID)"
    )


def _port(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or not 0 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError("a port is a number from 0 to 65535")
    return int(text)


def _name(text: str) -> str:
    from mcp_server.tools.arguments import check_name

    try:
        return check_name(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"it {error}") from None


def _token_user(text: str) -> str:
    if "," in text:
        raise argparse.ArgumentTypeError("it must not hold a comma, which separates entries")
    return _name(text)


def _start(role: str) -> Settings:
    """Settings, with logging set up for a process of this role."""
    from mcp_server.logs import configure_logging

    settings = load_settings()
    configure_logging(settings.logs, role, settings.log_level)
    return settings


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run what serves or works on a loop that takes a twentieth off each call."""
    import uvloop

    uvloop.run(work)


def _serve(options: argparse.Namespace) -> int:
    settings = _start("serve")
    from mcp_server.runtime import Runtime
    from mcp_server.server import build_server
    from mcp_server.transports import serve_http, serve_stdio

    async def run() -> None:
        server = build_server(Runtime(settings, run_worker=not options.no_worker, verify_store=True))
        if options.transport == "http":
            await serve_http(server, options.host, options.port)
        else:
            await serve_stdio(server)

    _run(run())
    return 0


def _worker(_: argparse.Namespace) -> int:
    settings = _start("worker")
    from mcp_server.runtime import Runtime
    from mcp_server.transports import run_worker

    async def run() -> None:
        await run_worker(Runtime(settings, verify_store=True))

    _run(run())
    return 0


def _ingest(options: argparse.Namespace) -> int:
    from mcp_server.ingest import ingest

    settings = load_settings()
    user_id = options.user_id or settings.default_user_id
    return asyncio.run(ingest(settings, options.sources, options.include, options.exclude, user_id, options.collection))


def _list_documents(options: argparse.Namespace) -> int:
    from mcp_server.documents import list_documents

    settings = load_settings()
    return asyncio.run(list_documents(settings, options.user_id or settings.default_user_id, options.collection))


def _remove_documents(options: argparse.Namespace) -> int:
    from mcp_server.documents import remove_documents

    settings = load_settings()
    user_id = options.user_id or settings.default_user_id
    return asyncio.run(remove_documents(settings, options.sources, user_id, options.collection))


def _chat(options: argparse.Namespace) -> int:
    from mcp_server.chat import ChatOptions, chat

    settings = load_settings()
    uses = {f"use_{use}": not getattr(options, f"no_{use}") for use in ("cache", "memory", "search")}
    user_id = options.user_id or settings.default_user_id
    return asyncio.run(chat(settings, ChatOptions(user_id, options.conversation, uses)))


def _index(options: argparse.Namespace) -> int:
    from mcp_server.index import index

    return asyncio.run(index(load_settings(), check=options.check))


def _reembed(_: argparse.Namespace) -> int:
    from mcp_server.reembed import reembed

    return asyncio.run(reembed(load_settings()))


def _doctor(_: argparse.Namespace) -> int:
    from mcp_server.doctor import doctor

    return asyncio.run(doctor(load_settings()))


def _demo(_: argparse.Namespace) -> int:
    from mcp_server.demo import demo

    return asyncio.run(demo())


def _token(options: argparse.Namespace) -> int:
    from mcp_server.auth import new_token

    token, entry = new_token(options.user)
    print(f"token (shown once, for the client): {token}")
    print(f"entry (for AUTH_TOKENS or a line of AUTH_TOKENS_FILE): {entry}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
