"""No damage to a file stops an inference."""

from __future__ import annotations

import io
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from thawline.evaluation.inference import decode_view
from thawline.networks.building import IMAGENET

PREPROCESSING = IMAGENET.model_copy(update={"size": 32, "resize": 36})


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_damage_to_a_file_raises(tmp_path: Path, photos: Path, data: st.DataObject) -> None:
    image = Image.open(photos / "flower" / "00.jpg").resize((40, 30))
    file = io.BytesIO()
    image.save(file, data.draw(st.sampled_from(["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"])))
    content = bytearray(file.getvalue())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    view, problem = decode_view(str(path), PREPROCESSING)
    assert view.shape == (3, 32, 32) and isinstance(problem, str)
    assert not problem or view.max() == 0
