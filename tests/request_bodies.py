"""What OpenAI's clients send, as JSON."""

import base64
import io
from typing import Any

import numpy as np
from PIL import Image as Pillow

from tokprune.types import Image


def data_url(picture: Image) -> str:
    """Return a picture as OpenAI's clients send it, without loss."""
    data = io.BytesIO()
    Pillow.fromarray(picture).save(data, "PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def noise(seed: int, side: int = 112) -> Image:
    """Return a picture that was not seen before."""
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3)).astype(np.uint8)


def picture_part(picture: Image) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(picture)}}


def text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def asking(*parts: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Return a request with one message."""
    return {"messages": [{"role": "user", "content": list(parts)}], **fields}
