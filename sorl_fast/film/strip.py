"""The still picture of a film that a run's folder keeps, and the report shows."""

import io
import os
from pathlib import Path

from PIL import Image, PngImagePlugin

STRIP = "film-strip.png"
_POLICY, _CAPTION = "sorl-fast policy", "Description"  # of the PNG's texts


def strip_bytes(picture: Image.Image, policy: str, caption: str) -> bytes:
    """Return the PNG of a strip; `policy` is the digest of the policy's file that acts in it."""
    texts = PngImagePlugin.PngInfo()
    texts.add_itxt(_POLICY, policy)
    texts.add_itxt(_CAPTION, caption)
    out = io.BytesIO()
    picture.save(out, "PNG", optimize=True, pnginfo=texts)
    return out.getvalue()


def read_strip(
    folder: str | os.PathLike[str], policy: str | None
) -> tuple[bytes, str] | str | None:
    """Return a run's strip and its caption; what is wrong with it, in words; or None if there is none.

    `policy` is the digest of the run's policy file; another one's strip is not shown.
    """
    path = Path(folder, STRIP)
    again = f"make it again, `sorl-fast film {folder}`."
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            picture.load()
            texts = picture.info
        found, caption = str(texts[_POLICY]), str(texts[_CAPTION])
    except FileNotFoundError:
        return None
    except Exception:  # whatever Pillow raises for what is no picture
        return f"has a {STRIP} that cannot be read: {again}"
    if found != policy:
        return f"has a film of another policy, before it was trained on: {again}"
    return data, caption
