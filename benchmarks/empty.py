"""An endpoint that reads its body and says yes: what FastAPI and Uvicorn cost alone. `python -m benchmarks.empty PORT`."""

from __future__ import annotations

import sys

import uvicorn
from fastapi import FastAPI, Request

app = FastAPI()


@app.post("/v1/events", status_code=202)
async def events(request: Request) -> dict:
    """Read and forget."""
    await request.body()
    return {"accepted": 1, "rejected": 0, "errors": []}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="error", access_log=False)
