import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def one_torch_thread():  # these shapes are tiny: waking a pool costs more than the work
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def no_override(monkeypatch):
    monkeypatch.delenv("SORL_BACKEND", raising=False)
