"""FastAPI with pydantic that answers `/v2/rerank` without scoring: what HTTP costs there (serving_overhead.py).

python benchmarks/serving_fastapi.py PORT
"""

import sys

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

app = FastAPI()


class Body(BaseModel):
    """A request of Cohere."""

    query: str
    documents: list[str]
    top_n: int | None = None


class Result(BaseModel):
    """One result."""

    index: int
    relevance_score: float


class Answer(BaseModel):
    """The answer."""

    id: str
    results: list[Result]


@app.post("/v2/rerank")
async def rerank(body: Body) -> Answer:
    """As many results as documents, by length."""
    scores = [1.0 / (1 + len(text)) for text in body.documents]
    order = sorted(range(len(scores)), key=lambda row: -scores[row])
    results = [Result(index=row, relevance_score=scores[row]) for row in order[: body.top_n]]
    return Answer(id="0", results=results)


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
