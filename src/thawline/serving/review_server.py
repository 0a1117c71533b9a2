"""Serve the page of a review, which shows images from their files and keeps their corrections."""

import json
import mimetypes
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.middleware.trustedhost import TrustedHostMiddleware

from thawline.data.atomic_write import write_atomic
from thawline.data.corrections import read_corrections
from thawline.data.shards import read_bytes
from thawline.errors import DataError
from thawline.serving.server import LOCAL

MAX_BYTES = 20_000_000  # of the corrections
DATA = '<script type="application/json" id="data">'


def make_app(page: Path, corrections: Path) -> FastAPI:
    """Return a server of a page of `reports.review`, for this machine alone.

    It shows the images that the page names and no other file, and writes the CSV of `corrections`.
    """
    _read(corrections)
    text = page.read_text("utf-8")
    data = json.loads(text.partition(DATA)[2].partition("</script>")[0])
    root, paths = Path(unquote(urlsplit(data["root"]).path)), data["images"]["path"]
    app = FastAPI(title="Thawline review", docs_url=None, redoc_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=LOCAL)

    @app.get("/")
    def show() -> Response:
        return Response(text, media_type="text/html")

    @app.get("/images/{row}")
    def read_image(row: int) -> Response:
        if not 0 <= row < len(paths):
            raise HTTPException(404, f"There are {len(paths)} images.")
        kind, _ = mimetypes.guess_type(paths[row])
        headers = {"X-Content-Type-Options": "nosniff"}
        try:
            content = read_bytes(root / paths[row])
        except OSError as error:
            raise HTTPException(404, f"{paths[row]} is no longer there.") from error
        return Response(content, media_type=kind, headers=headers)

    @app.get("/corrections")
    def list_corrections() -> list[dict[str, Any]]:
        try:
            return _read(corrections)
        except DataError as error:
            raise HTTPException(422, str(error)) from error

    @app.put("/corrections", status_code=204)
    async def keep_corrections(request: Request) -> None:
        content = b""
        async for part in request.stream():
            content += part
            if len(content) > MAX_BYTES:
                raise HTTPException(413, f"Corrections may have {MAX_BYTES // 10**6} MB.")

        def write(file: Path) -> None:
            file.write_bytes(content)
            read_corrections(file)

        try:
            write_atomic(corrections, write)
        except DataError as error:
            raise HTTPException(422, str(error)) from error

    return app


def _read(corrections: Path) -> list[Any]:
    """Return the rows of corrections.csv; none if there is no such file."""
    return read_corrections(corrections).to_dict("records") if corrections.is_file() else []
