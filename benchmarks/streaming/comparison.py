"""The design that is compared with: FastAPI under uvicorn, the openai library's objects for every chunk, no storage.

It answers in the chat's events; the conversation comes with every question, and the connection to the reader is all
that keeps an answer alive.
"""

import json
import os
from collections.abc import AsyncIterator
from typing import Literal

import openai
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

app = FastAPI()
client = openai.AsyncOpenAI(base_url=os.environ["MODEL_URL"], api_key="none", max_retries=0, timeout=120)


class Message(BaseModel):
    """A question or an answer."""

    role: Literal["user", "assistant"]
    content: str


class Question(BaseModel):
    """Body of a question: the conversation up to it."""

    messages: list[Message]


@app.get("/api/v1/health")
async def health() -> dict[str, str]:
    """Alive."""
    return {"status": "alive"}


@app.post("/api/v1/messages")
async def post_message(question: Question) -> StreamingResponse:
    """Relay the model's answer, an event for each chunk."""

    async def events() -> AsyncIterator[str]:
        stream = await client.chat.completions.create(
            model="benchmark",
            messages=[message.model_dump() for message in question.messages],
            stream=True,
            stream_options={"include_usage": True},
        )
        async for chunk in stream:
            if chunk.choices and (text := chunk.choices[0].delta.content):
                yield f"event: delta\ndata: {json.dumps({'text': text})}\n\n"
        yield 'event: done\ndata: {"status": "complete"}\n\n'

    return StreamingResponse(events(), media_type="text/event-stream")
