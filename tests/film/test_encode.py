import io
import re
import subprocess

import numpy as np
import pytest
from PIL import Image

from sorl_fast.errors import BadInput
from sorl_fast.film import encode
from sorl_fast.film.strip import STRIP, read_strip, strip_bytes


def pictures(count):
    base = np.zeros((48, 64, 3), np.uint8)
    made = []
    for t in range(count):
        picture = base.copy()
        picture[:, : 8 + t] = (200, 40, 40)
        made.append(Image.fromarray(picture))
    return made


@pytest.mark.parametrize("count", [1, 2, 13])
def test_a_gif_has_every_picture_at_its_rate_and_holds_the_last(count):
    with Image.open(io.BytesIO(encode.gif(pictures(count), 10))) as found:
        assert found.n_frames == count
        times = []
        for t in range(count):
            found.seek(t)
            times.append(found.info.get("duration"))
            shown = np.asarray(found.convert("RGB"), int)
            assert np.abs(shown - np.asarray(pictures(count)[t], int)).max() < 10
        assert times[:-1] == [100] * (count - 1)
        assert count == 1 or times[-1] == 1500


def test_colours_that_are_named_are_kept_however_rare():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    noise.putpixel((5, 5), (104, 211, 145))
    with Image.open(io.BytesIO(encode.gif([noise], 10, [(104, 211, 145)]))) as found:
        assert found.convert("RGB").getpixel((5, 5)) == (104, 211, 145)


def test_without_ffmpeg_what_to_install_is_said(monkeypatch):
    def absent(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(encode.shutil, "which", lambda name: None)
    monkeypatch.setattr(encode.importlib, "import_module", absent)
    with pytest.raises(BadInput, match=r"apt install ffmpeg, or pip install 'sorl-fast\[film\]'"):
        encode.mp4(pictures(2), 10)


def test_an_ffmpeg_that_fails_is_quoted(monkeypatch, tmp_path):
    fake = tmp_path / "ffmpeg"
    fake.write_text("#!/bin/sh\necho Unknown encoder libx264 >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setattr(encode, "find_ffmpeg", lambda: str(fake))
    with pytest.raises(BadInput, match="Unknown encoder libx264"):
        encode.mp4(pictures(2), 10)


def test_an_mp4_has_every_picture(tmp_path):
    try:
        ffmpeg = encode.find_ffmpeg()
    except BadInput as err:
        pytest.skip(str(err))
    (tmp_path / "film.mp4").write_bytes(encode.mp4(pictures(7), 10))
    probe = [ffmpeg, "-i", str(tmp_path / "film.mp4"), "-f", "null", "-"]
    said = subprocess.run(probe, capture_output=True, text=True, check=True).stderr
    assert re.findall(r"frame= *(\d+)", said)[-1] == str(7 + 15)  # the last is held


def test_a_strip_is_read_back_for_its_policy_alone(tmp_path):
    data = strip_bytes(pictures(1)[0], "a" * 64, "Episodes: µ")
    assert read_strip(tmp_path, "a" * 64) is None
    (tmp_path / STRIP).write_bytes(data)
    assert read_strip(tmp_path, "a" * 64) == (data, "Episodes: µ")
    assert "another policy" in read_strip(tmp_path, "b" * 64)
    assert "another policy" in read_strip(tmp_path, None)


@pytest.mark.parametrize("damage", ["cut", "empty", "no words", "a folder"])
def test_a_damaged_strip_is_said_to_be(tmp_path, damage):
    data = strip_bytes(Image.effect_noise((64, 64), 50), "a" * 64, "c")
    match damage:
        case "cut":
            (tmp_path / STRIP).write_bytes(data[: len(data) // 2])
        case "empty":
            (tmp_path / STRIP).touch()
        case "no words":
            pictures(1)[0].save(tmp_path / STRIP)
        case "a folder":
            (tmp_path / STRIP).mkdir()
    assert "cannot be read: make it again" in read_strip(tmp_path, "a" * 64)
