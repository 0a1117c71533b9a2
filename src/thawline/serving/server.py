"""Serve a registered model: MLflow's HTTP interface, and a page on which to try it."""

import base64
import hmac
import io
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import mlflow
from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from fastapi.responses import HTMLResponse, JSONResponse
from mlflow.pyfunc import scoring_server
from torchvision.transforms.v2 import functional

from thawline.data.transforms import normalize
from thawline.errors import DataError, ParameterError
from thawline.evaluation.explanations import attribute
from thawline.evaluation.inference import answer, decode_views, predict_batches
from thawline.networks.classifier import Classifier
from thawline.serving.requests import RequestLimits, check_request

TOP = 5  # classes of an answer
NEAREST = 3  # training images that are shown beside one
LOCAL = ["127.0.0.1", "localhost"]  # names of this machine
BASE64 = 4 / 3  # by which images grow in a request to /invocations
JSON_BYTES = 1_000_000  # around them
Next = Callable[[Request], Awaitable[Response]]


def make_app(uri: str, page: str, token: str | None = None) -> FastAPI:
    """Return a server of the model at an MLflow URI, with `page` at its root.

    `POST /invocations` is MLflow's interface, `POST /explain` answers one image file, and
    `/openapi.json` describes both. With a `token`, every request needs it, as a bearer token; the
    page takes it from its address.
    """
    model = mlflow.pyfunc.load_model(uri)
    served: Any = model.unwrap_python_model()
    limits: RequestLimits = served.limits
    app = scoring_server.init(model)
    app.title = f"Thawline: {uri}"
    most = int(limits.max_mb * 1e6 * BASE64) + JSON_BYTES

    if token is None:  # then a page of another site must not reach it by a name of its own
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=LOCAL)

    @app.middleware("http")
    async def guard(request: Request, answer: Next) -> Response:
        _, _, bearer = request.headers.get("authorization", "").partition(" ")
        given = bearer, request.query_params.get("token", "")
        if token and not any(hmac.compare_digest(each.encode(), token.encode()) for each in given):
            return JSONResponse({"error": "This server needs its token."}, 401)
        if request.method == "POST":
            length = request.headers.get("content-length", "")
            if not length.isdecimal() or "transfer-encoding" in request.headers:
                return JSONResponse({"error": "The request does not say its length."}, 411)
            if int(length) > most:
                return JSONResponse({"error": f"A request may have {limits.max_mb:g} MB."}, 413)
        return await answer(request)

    @app.get("/", response_class=HTMLResponse)
    def show_page() -> str:
        return page

    @app.post("/explain")
    async def explain(request: Request, attribution: bool = True) -> Response:
        """Answer the bytes of an image file: classes, and what in it speaks for the first."""
        content = await request.body()
        try:
            check_request([content], limits, takes_paths=False)
            found = await run_in_threadpool(look_at, served.classifier, content, attribution)
        except DataError as error:
            return JSONResponse({"error": str(error)}, 400)
        return JSONResponse(found)

    return app


def look_at(classifier: Classifier, content: bytes, attribution: bool) -> dict[str, Any]:
    """Return classes with their probabilities, and pictures as PNG in base64.

    Returns:
        classes: up to five pairs of name and probability (0 to 1), the most probable first; set
        and reason, see `inference.answer`, if there are any; view: what the network saw. With
        `attribution`, nearest: label and view of the most similar training images that the model
        knows and whose files this machine has; and attribution: Grad-CAM in gray, white where most
        speaks for the first class, if the network has one.

    Raises:
        DataError: if the image cannot be read.
    """
    (batch,) = predict_batches(classifier, [content], 1)
    if batch.problems[0]:
        raise DataError(f"The image cannot be read: {batch.problems[0]}.")
    probabilities, order = batch.probabilities[0].sort(descending=True, stable=True)
    pairs = zip(order[:TOP].tolist(), probabilities[:TOP].tolist(), strict=True)
    classes = [(classifier.class_names[idx], probability) for idx, probability in pairs]
    row = answer(batch, classifier, 1).to_dict("records")[0]
    sure = {name: row[name] for name in ("set", "reason") if isinstance(row.get(name), str)}
    found: dict[str, Any] = {"classes": classes, "view": _png(batch.views[0]), **sure}
    if attribution:
        found["nearest"] = nearest_images(classifier, batch.nearest[0].tolist())
        images = normalize(batch.views, classifier.preprocessing)
        try:
            evidence = attribute(classifier.network, images, order[:1].tolist(), "grad_cam")[0]
        except ParameterError as error:  # a network without a spatial stage
            return found | {"no_attribution": str(error)}
        found["attribution"] = _png(evidence[None] / evidence.max().clamp_min(1e-9))
    return found


def nearest_images(classifier: Classifier, positions: Sequence[int]) -> list[tuple[str, str]]:
    """Return label and view, as PNG, of the first three reference images that can be read."""
    known, found = classifier.calibration.reference_images, list[tuple[str, str]]()
    for path, label in (known[position] for position in positions if known):
        (view,), problem = decode_views(path, classifier.preprocessing)
        if not problem:
            found.append((label, _png(view)))
        if len(found) == NEAREST:
            break
    return found


def _png(picture: Any) -> str:
    """Return a picture (C, H, W), uint8 or from 0 to 1, as PNG in base64."""
    buffer = io.BytesIO()
    functional.to_pil_image(picture).save(buffer, format="png")
    return base64.b64encode(buffer.getvalue()).decode("ascii")
