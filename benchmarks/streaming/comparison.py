"""The design that is compared with: FastAPI under uvicorn, the openai library's objects for every chunk, no storage.

It speaks just enough of the chat's API for the benchmark's client; the connection to the reader is all that keeps an
answer alive.
"""

import json
import os
import uuid
from collections.abc import AsyncIterator

import openai
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

app = FastAPI()
client = openai.AsyncOpenAI(base_url=os.environ["MODEL_URL"], api_key="none", max_retries=0, timeout=120)


class Message(BaseModel):
    """Body of a message."""

    content: str


@app.get("/api/v1/health")
async def health() -> dict[str, str]:
    """Alive."""
    return {"status": "alive"}


@app.post("/api/v1/conversations")
async def create() -> dict[str, str]:
    """An identifier; nothing is kept."""
    return {"id": str(uuid.uuid4())}


@app.post("/api/v1/conversations/{conversation_id}/messages")
async def post_message(conversation_id: str, message: Message) -> StreamingResponse:
    """Relay the model's answer, an event for each chunk."""

    async def events() -> AsyncIterator[str]:
        yield f"event: start\ndata: {json.dumps({'conversation_id': conversation_id})}\n\n"
        stream = await client.chat.completions.create(
            model="benchmark",
            messages=[{"role": "user", "content": message.content}],
            stream=True,
            stream_options={"include_usage": True},
        )
        async for chunk in stream:
            if chunk.choices and (text := chunk.choices[0].delta.content):
                yield f"event: delta\ndata: {json.dumps({'text': text})}\n\n"
        yield 'event: done\ndata: {"status": "complete"}\n\n'

    return StreamingResponse(events(), media_type="text/event-stream")
