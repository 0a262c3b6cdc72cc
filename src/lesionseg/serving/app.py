"""The server's routes: an image in, a mask out, and pages that say how."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib import metadata
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel

from lesionseg.errors import DataError
from lesionseg.inference.decoding import problem_of
from lesionseg.serving import bodies
from lesionseg.serving.limits import Admission, Limits, read_body
from lesionseg.serving.page import write_page
from lesionseg.serving.service import Answer, Service

USE = "Where the lesion is in an image of skin. Research use, not for diagnosis."


class Health(BaseModel):
    """That the server answers, and with which model."""

    status: str
    model: str
    model_sha256: str
    image_size: int
    threshold: float
    requests: int


class Problem(BaseModel):
    """Why a request was refused, in one line."""

    detail: str


REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "It is not an image, or none was sent."},
    408: {"model": Problem, "description": "The request came too slowly."},
    413: {"model": Problem, "description": "The request or the image is too large."},
    415: {"model": Problem, "description": "It was sent in another way than those above."},
    429: {"model": Problem, "description": "Too many requests are waiting. Try again."},
}
PNG: dict[int | str, dict[str, Any]] = {200: {"content": {"image/png": {}}}}


def make_app(service: Service, limits: Limits) -> FastAPI:
    """The application.

    Args:
        service: The model.
        limits: What it takes at once.
    """
    workers = _Workers(limits.num_workers)
    app = FastAPI(
        title="lesionseg",
        version=metadata.version("lesionseg"),
        description=USE,
        docs_url=None,  # FastAPI's own page loads its scripts from elsewhere
        redoc_url=None,
        lifespan=workers.lifespan,
    )
    app.add_middleware(Admission, limits=limits)
    app.add_exception_handler(DataError, _refuse)

    async def compute(request: Request, work: Callable[[bytes], bytes], kind: str) -> Response:
        content_type = request.headers.get("content-type", "")
        body = await read_body(request, limits)
        return await workers.run(
            request,
            lambda: Response(work(bodies.find_image(body, content_type)), media_type=kind),
        )

    @app.post(
        "/predict",
        response_model=Answer,
        response_description="What is in the image, as below.",
        responses=REFUSALS,
        openapi_extra=bodies.SCHEMA,
    )
    async def predict(
        request: Request,
        probability: Annotated[bool, Query(description="Give the probabilities as well.")] = False,
    ) -> Response:
        """The mask of an image, its size and the lesion's share."""
        return await compute(
            request,
            lambda content: service.answer(content, probability=probability),
            "application/json",
        )

    @app.post(
        "/mask",
        response_class=Response,
        response_description="The mask at the image's own size: 255 in the lesion, 0 elsewhere.",
        responses=REFUSALS | PNG,
        openapi_extra=bodies.SCHEMA,
    )
    async def mask(request: Request) -> Response:
        """The mask alone, as a PNG file."""
        return await compute(request, service.mask, "image/png")

    @app.get("/health", response_description="The server is there.")
    async def health(request: Request) -> Health:
        """Whether the server answers, with which model, and how many requests it has."""
        return Health(
            status="ok",
            model=service.served.name,
            model_sha256=service.served.sha256,
            image_size=service.image_size,
            threshold=service.served.threshold,
            requests=request.scope["num_requests"],
        )

    @app.get("/", include_in_schema=False)
    async def page(request: Request) -> HTMLResponse:
        origin = str(request.base_url)
        text, policy = write_page(app.openapi(), service.served, limits, origin=origin)
        return HTMLResponse(text, headers={"Content-Security-Policy": policy})

    return app


class _Workers:
    """The threads that decode and encode."""

    def __init__(self, num_workers: int) -> None:
        self._pool = ThreadPoolExecutor(num_workers, thread_name_prefix="worker")
        self._turns = asyncio.Semaphore(num_workers)

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:  # noqa: ARG002
        """From the server's start to its end."""
        yield
        self._pool.shutdown(cancel_futures=True)

    async def run(self, request: Request, work: Callable[[], Response]) -> Response:
        """What `work` makes in a thread, when it is its turn, unless nobody waits for it."""
        async with self._turns:
            if await request.is_disconnected():
                return Response()
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)


async def _refuse(request: Request, error: Exception) -> JSONResponse:  # noqa: ARG001
    assert isinstance(error, DataError)
    return JSONResponse({"detail": problem_of(error)}, 400)
