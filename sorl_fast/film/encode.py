"""Pictures to the bytes of a .gif, by Pillow, or of an .mp4, by ffmpeg where there is one."""

import importlib
import io
import itertools
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from ..errors import BadInput

HOLD = 1.5  # seconds that the last picture stays


def gif(
    pictures: Sequence[Image.Image], fps: int, colours: Sequence[tuple[int, int, int]] = ()
) -> bytes:
    """Return an animation of at least one picture, without end, in which the last one stays a while.

    `colours` are shown as they are, however little there is of them; all others by the nearest of 256.
    All pictures share that palette, taken from a few of them, and nothing is dithered: what did not move is
    then the same, and costs nothing.
    """
    some = pictures[:: max(1, len(pictures) // 6)]
    width, height = some[0].size
    sample = Image.new("RGB", (width, height * len(some)))
    for i, picture in enumerate(some):
        sample.paste(picture, (0, i * height))
    # unlike the others, an octree keeps the colours of what is small: a cube
    found = sample.quantize(256 - len(colours), Image.Quantize.FASTOCTREE).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette([*itertools.chain(*colours), *found])
    drawn = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    out = io.BytesIO()
    times = [round(1000 / fps)] * (len(drawn) - 1) + [round(1000 * HOLD)]
    drawn[0].save(
        out, "GIF", save_all=True, append_images=drawn[1:], duration=times, loop=0, disposal=1
    )
    return out.getvalue()


def find_ffmpeg() -> str:
    """Return the path of ffmpeg: the system's, or imageio-ffmpeg's.

    Raises
    ------
    BadInput
        There is none.
    """
    found = shutil.which("ffmpeg")
    if found is None:
        try:
            found = str(importlib.import_module("imageio_ffmpeg").get_ffmpeg_exe())
        except (ModuleNotFoundError, RuntimeError):
            raise BadInput(
                "there is no ffmpeg here to write an .mp4: apt install ffmpeg, or pip install "
                "'sorl-fast[film]', or give --out a name that ends in .gif"
            ) from None
    return found


def mp4(pictures: Iterable[Image.Image], fps: int) -> bytes:
    """Return a film in H.264; the sides of the pictures are even.

    Raises
    ------
    BadInput
        There is no ffmpeg, or it cannot encode H.264.
    """
    left = iter(pictures)
    first = next(left)
    width, height = first.size
    with tempfile.TemporaryDirectory(prefix="sorl-film-") as folder:
        out, log = Path(folder, "film.mp4"), Path(folder, "log")
        command = [
            *(find_ffmpeg(), "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24"),
            *("-s", f"{width}x{height}", "-r", str(fps), "-i", "-", "-an", "-c:v", "libx264"),
            *("-pix_fmt", "yuv420p", "-movflags", "+faststart", str(out)),
        ]
        with (
            log.open("wb") as said,
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=said, stderr=said) as ffmpeg,
        ):
            assert ffmpeg.stdin is not None
            try:
                for picture in itertools.chain([first], left):
                    data = picture.tobytes()
                    ffmpeg.stdin.write(data)
                for _ in range(round(HOLD * fps)):
                    ffmpeg.stdin.write(data)
                ffmpeg.stdin.close()
            except BrokenPipeError:  # it has ended; its log says why
                pass
            except BaseException:
                ffmpeg.kill()
                raise
        if ffmpeg.returncode != 0:
            reason = " ".join(log.read_text(errors="replace").split())[-200:]
            raise BadInput(
                f"{command[0]} cannot write an .mp4 ({reason}). Install one that has libx264, or give "
                "--out a name that ends in .gif"
            )
        return out.read_bytes()
