"""What a person who asks Python for help on the native modules is told."""

import inspect

import pytest

_native = pytest.importorskip("sorl_fast._native", reason="the extension is not built")
_bench = pytest.importorskip("sorl_fast._bench")


def public(of):
    return {name: value for name, value in vars(of).items() if not name.startswith("_")}


def offered():
    for module in (_native, _bench):
        for name, value in public(module).items():
            yield pytest.param(value, id=f"{module.__name__}.{name}")
            if inspect.isclass(value):
                for method, function in public(value).items():
                    yield pytest.param(function, id=f"{module.__name__}.{name}.{method}")


@pytest.mark.parametrize("thing", list(offered()))
def test_each_says_what_it_is_and_names_its_arguments(thing):
    lines = inspect.getdoc(thing).splitlines()
    # pybind11 begins with the signature, of a class at its __init__
    signature = (
        inspect.getdoc(thing.__init__).splitlines()[0] if inspect.isclass(thing) else lines[0]
    )
    text = "\n".join(lines if inspect.isclass(thing) else lines[1:] or lines)
    assert text.strip()
    assert "arg0" not in signature
    if signature.count(": ") > 3:  # self and two more explain themselves
        assert "Parameters\n----------" in text
