"""Other frameworks that answer `/v2/rerank` without scoring: what HTTP costs there (serving_overhead.py).

python benchmarks/serving_others.py NAME PORT
"""

# Not `from __future__ import annotations`: FastAPI reads the annotations of a route, and its classes are local.
import importlib.util
import sys
from typing import Any

NAMES = {
    "FastAPI with pydantic on uvicorn": ("fastapi", "pydantic", "uvicorn"),
    "Starlette with msgspec on uvicorn": ("starlette", "msgspec", "uvicorn"),
    "Starlette with msgspec on Granian": ("starlette", "msgspec", "granian"),
}


def installed() -> list[str]:
    """Those that can be run here."""
    return [name for name, needs in NAMES.items() if all(importlib.util.find_spec(each) for each in needs)]


def fastapi_app() -> Any:
    """Bodies and answers as pydantic models, as its documentation teaches."""
    from fastapi import FastAPI
    from pydantic import BaseModel

    class Body(BaseModel):
        query: str
        documents: list[str]
        top_n: int | None = None

    class Result(BaseModel):
        index: int
        relevance_score: float

    class Answer(BaseModel):
        id: str
        results: list[Result]

    app = FastAPI()

    @app.post("/v2/rerank")
    async def rerank(given: Body) -> Answer:
        results = [Result(index=row, relevance_score=score) for row, score in by_length(given.documents, given.top_n)]
        return Answer(id="0", results=results)

    return app


def starlette_app() -> Any:
    """Bodies and answers as msgspec structs."""
    import msgspec
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    class Body(msgspec.Struct):
        query: str
        documents: list[str]
        top_n: int | None = None

    class Result(msgspec.Struct):
        index: int
        relevance_score: float

    decoder = msgspec.json.Decoder(Body)

    async def rerank(request: Request) -> Response:
        given = decoder.decode(await request.body())
        results = [Result(row, score) for row, score in by_length(given.documents, given.top_n)]
        content = msgspec.json.encode({"id": "0", "results": results})
        return Response(content, media_type="application/json")

    return Starlette(routes=[Route("/v2/rerank", rerank, methods=["POST"])])


def by_length(documents: list[str], top: int | None) -> list[tuple[int, float]]:
    """As many results as documents, by length."""
    scores = [1.0 / (1 + len(text)) for text in documents]
    order = sorted(range(len(scores)), key=lambda row: -scores[row])[:top]
    return [(row, scores[row]) for row in order]


def main() -> None:
    """Serve one of them until it is ended."""
    name, port = sys.argv[1], int(sys.argv[2])
    if "Granian" in name:
        from granian import Granian

        target = f"{__file__}:starlette_app"
        Granian(target, address="127.0.0.1", port=port, interface="asgi", factory=True, log_enabled=False).serve()
        return
    import uvicorn

    app = fastapi_app() if "FastAPI" in name else starlette_app()
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


if __name__ == "__main__":
    main()
