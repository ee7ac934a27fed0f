"""`POST /upload`: documents over plain HTTP, as multipart files and URLs."""

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

from mcp.server.transport_security import TransportSecurityMiddleware
from mcp.shared.exceptions import MCPError
from pydantic import TypeAdapter, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from temporalio.exceptions import ApplicationError

from activities.models import DEFAULT_COLLECTION, IngestParams, SourceRequest
from mcp_server.runtime import CallError
from mcp_server.tools.arguments import Glob, Name, SourceName

if TYPE_CHECKING:
    from mcp.server.transport_security import TransportSecuritySettings
    from starlette.types import Message

    from mcp_server.server import DurableContextServer

MAX_FILES = 100
MAX_FIELDS = 400
REQUEST_FILES = 10
"""Size of a request, at most, in files of the largest size."""
PIECE = 1024 * 1024
POLL_SECONDS = 0.2

_NAME = TypeAdapter[str](Name)
_SOURCE = TypeAdapter[str](SourceName)
_GLOB = TypeAdapter[str](Glob)
_FIELDS = ("url", "collection", "user_id", "include", "exclude")


def answering(security: "TransportSecuritySettings", handler: Callable[[Request], Awaitable[Response]]) -> Any:
    """A handler that only answers the hosts and origins of `security`, and whose refusals are JSON."""
    checks = TransportSecurityMiddleware(security)

    async def answer(request: Request) -> Response:
        if (refusal := await checks.validate_request(request)) is not None:
            return refusal
        try:
            return await handler(request)
        except HTTPException as error:
            return JSONResponse({"error": error.detail}, error.status_code)
        except CallError as error:
            return JSONResponse({"error": str(error)}, 503)

    return answer


class Uploads:
    """The two endpoints.

    Args:
        server: Runs the ingestions.
        security: Which Host and Origin headers are accepted: any page in a browser can send such a form.
    """

    def __init__(self, server: "DurableContextServer", security: "TransportSecuritySettings") -> None:
        self._server = server
        self._security = security

    def register(self) -> None:
        """Publish `POST /upload` and `GET /upload/{task_id}`."""
        self._server.custom_route("/upload", methods=["POST"])(answering(self._security, self._upload))
        self._server.custom_route("/upload/{task_id}", methods=["GET"])(answering(self._security, self._look))

    async def _upload(self, request: Request) -> Response:
        """Ingest the files and URLs of a form; 200 with the result, or 202 with the task where it takes longer."""
        from workflows.documents import DataIngestionWorkflow

        settings = self._server.runtime.settings
        owner = self._server.authenticated(request)
        deadline = time.monotonic() + settings.call_timeout_seconds
        self._limit(request, REQUEST_FILES * settings.ingest_max_bytes)
        async with request.form(max_files=MAX_FILES, max_fields=MAX_FIELDS) as form:
            self._check_fields(form)
            named = _one(form, "user_id", _NAME)
            if owner is not None and named not in (None, owner):
                raise HTTPException(403, "user_id: this token belongs to another user. Leave user_id out.")
            params = IngestParams(
                user_id=owner or named or settings.default_user_id,
                collection=_one(form, "collection", _NAME) or DEFAULT_COLLECTION,
                sources=[SourceRequest(url=url) for url in _all(form, "url", _SOURCE)],
                include=_all(form, "include", _GLOB),
                exclude=_all(form, "exclude", _GLOB),
            )
            files = _files(form)
            if not params.sources and not files:
                raise HTTPException(400, "There is no file and no url in the form.")
            try:
                for name, file in files.items():
                    params.sources.append(await self._hold(name, file))
            except BaseException:
                await self._drop(params.sources)
                raise
        try:
            task_id = await self._server.tasks.begin(owner, "ingest_documents", DataIngestionWorkflow, params)
        except CallError as error:
            # One that names a workflow may have been started after all, and needs its files.
            if error.workflow_id is None:
                await self._drop(params.sources)
            raise
        while True:
            task = await self._server.tasks.stands(owner, task_id)
            if task.status not in ("working", "input_required") or time.monotonic() >= deadline:
                return self._shown(task.model_dump(mode="json"))
            await asyncio.sleep(POLL_SECONDS)

    async def _look(self, request: Request) -> Response:
        """How an ingestion stands that took longer than its request."""
        try:
            task = await self._server.tasks.stands(self._server.authenticated(request), request.path_params["task_id"])
        except MCPError as error:
            raise HTTPException(404, error.error.message) from None
        return self._shown(task.model_dump(mode="json"))

    @staticmethod
    def _shown(task: dict[str, Any]) -> Response:
        if task["status"] == "working":
            return JSONResponse(task, 202, {"Location": f"/upload/{task['task_id']}"})
        return JSONResponse(task, 200 if task["status"] == "completed" else 500)

    @staticmethod
    def _limit(request: Request, most: int) -> None:
        """Refuse a request once it is longer than `most` bytes."""
        refusal = HTTPException(413, f"The request is longer than {most:,} bytes. Send fewer files at once.")
        declared = request.headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > most:
            raise refusal
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            raise HTTPException(415, "Send a form as multipart/form-data, as `curl -F file=@handbook.pdf` does.")
        receive, received = request._receive, 0

        async def counting() -> "Message":
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > most:
                raise refusal
            return message

        request._receive = counting

    @staticmethod
    def _check_fields(form: FormData) -> None:
        for name, value in form.multi_items():
            if not isinstance(value, UploadFile) and name not in _FIELDS:
                raise HTTPException(
                    400,
                    f"There is no field '{name}'. The fields are: {', '.join(_FIELDS)}; and files, under any name, "
                    "attached as `curl -F file=@handbook.pdf` does.",
                )

    async def _drop(self, sources: list[SourceRequest]) -> None:
        """Keep nothing of files that won't be ingested."""
        with contextlib.suppress(ApplicationError):
            for source in sources:
                if source.content is not None:
                    await self._server.runtime.contents.drop(source.content)

    async def _hold(self, name: str, file: UploadFile) -> SourceRequest:
        """Keep a file where the workflow finds it."""
        request = SourceRequest(name=name, media_type=file.content_type or "")
        most = self._server.runtime.settings.ingest_max_bytes
        if (file.size or 0) > most:
            request.error = f"It is larger than INGEST_MAX_BYTES ({most:,} bytes). Split it, or raise the limit."
            return request

        async def pieces() -> AsyncIterator[bytes]:
            while piece := await file.read(PIECE):
                yield piece

        request.content = uuid.uuid4().hex
        try:
            await self._server.runtime.contents.put(request.content, pieces())
        except ApplicationError as error:
            raise HTTPException(503, error.message) from None
        return request


def _files(form: FormData) -> dict[str, UploadFile]:
    """The files of a form by their names.

    Raises:
        HTTPException: where a file has none, or two have the same.
    """
    files: dict[str, UploadFile] = {}
    for _, file in form.multi_items():
        if isinstance(file, UploadFile):
            try:
                name = _SOURCE.validate_python(file.filename or "")
            except ValidationError:
                raise HTTPException(400, "Every file needs a name, without control characters.") from None
            if name in files:
                raise HTTPException(
                    400, f"Two files are called {name}, so that one would replace the other. Rename one."
                )
            files[name] = file
    return files


def _all(form: FormData, name: str, kind: TypeAdapter[str]) -> list[str]:
    """The values of a field.

    Raises:
        HTTPException: where one can't be used.
    """
    try:
        return [kind.validate_python(value) for value in form.getlist(name) if value != ""]
    except ValidationError as error:
        raise HTTPException(400, f"{name}: {error.errors()[0]['msg'].removeprefix('Value error, ')}.") from None


def _one(form: FormData, name: str, kind: TypeAdapter[str]) -> str | None:
    values = _all(form, name, kind)
    if len(values) > 1:
        raise HTTPException(400, f"{name}: give it once.")
    return values[0] if values else None
