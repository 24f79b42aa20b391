"""A kill at any moment never loses the last good checkpoint."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest

from sorl_fast.errors import BadInput
from sorl_fast.learn.checkpoint import checkpoint_folders, load_latest, save_checkpoint

KILLS = 200

SAVER = textwrap.dedent("""
    import os, random, signal, sys, time
    from pathlib import Path
    import numpy as np
    from sorl_fast.learn.checkpoint import load_latest, save_checkpoint

    assert "torch" not in sys.modules
    root, kills = Path(sys.argv[1]), int(sys.argv[2])

    def tensors(step):
        return {"w": np.full((64, 65), step, np.float32), "m/first": np.full(7, -step, np.float64)}

    random.seed(0)
    save_checkpoint(root, 1, tensors(1), {"note": "1"}, keep=2)
    step, inside, moved = 1, 0, 0
    for _ in range(kills):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            while True:
                step += 1
                save_checkpoint(root, step, tensors(step), {"note": str(step)}, keep=2)
                os.write(writer, step.to_bytes(4, "little"))
        os.close(writer)
        time.sleep(random.uniform(0.0, 0.02))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        told = b""
        while chunk := os.read(reader, 65536):
            told += chunk
        os.close(reader)
        promised = int.from_bytes(told[-4:], "little") if told else step
        inside += any(root.glob(".*.part"))
        saved = load_latest(root)
        assert saved.step >= promised, (saved.step, promised)
        assert saved.info["note"] == str(saved.step)
        for name, x in tensors(saved.step).items():
            assert np.array_equal(saved.tensors[name], x), name
        assert not any(root.glob(".*.part"))
        moved += saved.step > step
        step = saved.step
    print(f"{kills} kills, {inside} of them inside a save, {moved} with progress")
    assert inside > 0 and moved > 0
""")


@pytest.mark.slow
def test_no_checkpoint_is_lost_to_200_kills(tmp_path):
    command = [sys.executable, "-c", SAVER, str(tmp_path / "checkpoints"), str(KILLS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{KILLS} kills")


def some(step):
    return {"a/b": np.arange(6, dtype=np.float32).reshape(2, 3) + step, "r": np.zeros(3, np.uint8)}


def test_goes_round_and_keeps_the_newest(tmp_path):
    for step in (10, 20, 30):
        save_checkpoint(tmp_path, step, some(step), {"seconds": 1.5}, keep=2)
    assert [p.name for p in checkpoint_folders(tmp_path)] == ["000000020", "000000030"]
    saved = load_latest(tmp_path)
    assert (saved.step, saved.info["seconds"]) == (30, 1.5)
    assert all(np.array_equal(x, some(30)[k]) for k, x in saved.tensors.items())
    assert {k: x.dtype for k, x in saved.tensors.items()} == {"a/b": np.float32, "r": np.uint8}


def test_a_strided_array_is_saved_as_it_reads(tmp_path):
    save_checkpoint(tmp_path, 1, {"t": np.arange(6.0).reshape(2, 3).T}, {}, keep=1)
    assert np.array_equal(load_latest(tmp_path).tensors["t"], np.arange(6.0).reshape(2, 3).T)


def test_nothing_to_resume(tmp_path):
    with pytest.raises(BadInput, match="nothing to resume"):
        load_latest(tmp_path)


@pytest.mark.parametrize("name", ["info.json", "state.safetensors"])
def test_a_damaged_checkpoint_is_named_with_its_remedy(name, tmp_path):
    folder = save_checkpoint(tmp_path, 5, some(5), {}, keep=1)
    (folder / name).write_bytes(b"\0" * 20)
    with pytest.raises(BadInput, match=r"000000005 cannot be read: .* Remove"):
        load_latest(tmp_path)


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, 1, some(1), {}, keep=1)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(BadInput, match="No space left on device"):
        save_checkpoint(tmp_path, 2, some(2), {}, keep=1)
    monkeypatch.undo()
    assert load_latest(tmp_path).step == 1
    assert [p.name for p in tmp_path.iterdir()] == ["000000001"]
