# SPDX-License-Identifier: Apache-2.0
"""A library behind HTTP by Ray Serve: a picture's file is posted, its named answer comes back as JSON.

    pip install "tvm-involution[ray]" "ray[serve]"
    LIBRARY=rednet50.so serve run --working-dir examples ray_serve:app
    curl --data-binary @photo.jpg http://127.0.0.1:8000/

Requests that come together are answered together, up to the largest batch that the library was compiled for; more by
`Answers.options(num_replicas=...)`.
"""

from __future__ import annotations

import os
from typing import Any

from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse

import tvm_involution as ti
from tvm_involution.runtime.predictor import Failure


@serve.deployment(max_ongoing_requests=64)
class Answers:
    """A loaded library, one for each replica."""

    def __init__(self, library: str) -> None:
        self._predict = ti.Predictor(os.path.abspath(library))
        self._predict.network.warm_up()
        self._together.set_max_batch_size(self._predict.batch)

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=0.002)
    async def _together(self, pictures: list[bytes]) -> list[Any]:
        return list(self._predict.stream(pictures))

    async def __call__(self, request: Request) -> JSONResponse:
        """Answer about the picture whose bytes are posted; status 400 if they are none."""
        answer = await self._together(await request.body())
        if isinstance(answer, Failure):
            return JSONResponse({"error": str(answer.error)}, status_code=400)
        return JSONResponse(answer.to_json())


app = Answers.bind(os.environ.get("LIBRARY", "rednet50.so"))
