"""What the loader of policy files refuses: every damage, by name."""

import json
import re
import tracemalloc

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from policies import make_policy
from policy_bytes import DATA, POLICY, check_same, seal, seal_text, unpack

from sorl_fast import BadInput
from sorl_fast.act.policy_file import dumps, load, loads

START = 8 + int.from_bytes(DATA[:8], "little")
SLOW_OK = settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow], deadline=None)
NAN, INF = float("nan"), float("inf")


# --- damage as it happens, which the digest finds


def refused(data, message=""):
    with pytest.raises(BadInput) as caught:
        loads(data, "the/file")
    text = str(caught.value)
    assert text.startswith("policy file the/file: ")
    assert "but must be" in text
    assert text.endswith("with sorl_fast")  # the remedy
    assert len(text) < 1000
    assert message in text, text


def test_every_truncation_is_refused():
    for n in {
        *range(64),
        *range(0, len(DATA), 97),
        START - 1,
        START,
        *range(len(DATA) - 64, len(DATA)),
    }:
        refused(DATA[:n])


@pytest.mark.parametrize("tail", [b"\0", b"\0" * 8, DATA], ids=["byte", "word", "twice"])
def test_a_longer_file_is_refused(tail):
    refused(DATA + tail, "sha256 is")


def test_every_header_byte_flip_is_refused():
    for i in range(START):
        for bit in (0, 3, 7):
            refused(DATA[:i] + bytes([DATA[i] ^ 1 << bit]) + DATA[i + 1 :])


@SLOW_OK
@given(st.data())
def test_random_damage_is_refused(data):
    damaged = bytearray(DATA)
    for _ in range(data.draw(st.integers(1, 4))):
        i = data.draw(st.integers(0, len(DATA) - 1))
        damaged[i] ^= data.draw(st.integers(1, 255))
    if damaged != DATA:  # two flips of one byte may cancel
        refused(bytes(damaged))


@SLOW_OK
@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_are_refused(data, framed):
    refused(seal_text(data) if framed else data)


@pytest.mark.parametrize("n", [2**64 - 1, 2**63, 2**32, len(DATA) - 7, 1 << 20], ids=str)
def test_a_header_length_beyond_the_file_is_refused(n):
    refused(n.to_bytes(8, "little") + DATA[8:], f"header length is {n} bytes")


# --- and damage with a new digest, which the check of each field finds


def test_seal_gives_a_file_that_loads():
    check_same(loads(seal(*unpack())), POLICY)


HUGE = 3**900  # no run of zeros that `seal` could take for the digest
WRONG = {
    "format": [0, 2, "1", None, True, 1.0],
    "obs_dim": [2, 4, 0, -3, "3", 3.0, None, True, [3], 2**31, HUGE],
    "act_dim": [1, 3, 0, "2", None, HUGE],
    "hidden": [7, 9, 0, -8, "8", None, HUGE],
    "depth": [1, 3, 0, -2, "2", None, 2**31 - 1, HUGE],
    "ensemble": [1, 3, 0, "2", None, HUGE],
    "m_disc": [0, 3, 4, -8, 8.0, "8", None, 2**21, HUGE],
    "m_btt": [0, 3, 16, 8.0, "8", None],
    "q_agg": ["", "max", "Mean", None, 0, ["mean"]],
    "env": [None, 1, ["toy"], "\ud800"],
    **{
        name: [
            None,
            1,
            "",
            [],
            [0.5],
            [0.5] * 3,
            [0.5, None],
            [0.5, "x"],
            [0.5, True],
            [[0.5] * 2],
            [NAN, 0.5],
            [INF, 0.5],
            [HUGE, 0.5],
            [0.5, -1e39],
            {"0": 1},
        ]
        for name in ("action_low", "action_high")
    },
    "obs_mean": [None, 1, [], [0.0] * 2, [0.0] * 4, [0, 0, "0"], [0, 0, NAN], [0, 0, HUGE]],
    "obs_std": [None, 1, [], [1.0] * 2, [1, 1, 0], [1, 1, -1], [1, 1, 1e-60], [1, 1, INF]],
    "config": [None, 1, [], "x", {"a": NAN}, {"a": INF}, {"a": "\udc00"}, {"a" * 257: 1}],
    "sha256": [None, 0, "", "0" * 63, "0" * 65, "G" * 64, ["0" * 64]],
}
WRONG_CASES = [(name, value) for name, values in WRONG.items() for value in values]


def short(value):
    return str(value)[:24].encode("unicode_escape").decode()


@pytest.mark.parametrize(
    ("name", "value"), WRONG_CASES, ids=[f"{n}={short(v)}" for n, v in WRONG_CASES]
)
def test_wrong_metadata_is_refused_by_the_field_checks(name, value):
    header, meta, body = unpack()
    refused(seal(header, meta | {name: value}, body))


@pytest.mark.parametrize("name", list(unpack()[1]))
def test_every_metadata_field_is_altered_removed_and_renamed(name):
    header, meta, body = unpack()
    # altered, digest as it was: whatever the change, the digest finds it
    value = json.dumps(meta[name], separators=(",", ":"))
    old = json.dumps(f'"{name}":{value}')[1:-1].encode()
    assert DATA.count(old) == 1
    digit = re.search(rb"[0-9]", old)
    other = b"5" if digit is None else bytes([digit[0][0] ^ 1])
    new = old[:-3] + other + old[-2:] if digit is None else old.replace(digit[0], other, 1)
    refused(DATA.replace(old, new))
    without = {k: v for k, v in meta.items() if k != name}
    refused(seal(header, without, body), f"{name} is ")
    refused(seal(header, without | {name.upper(): meta[name]}, body))


def test_an_unknown_metadata_field_is_refused():
    header, meta, body = unpack()
    refused(seal(header, meta | {"colour": "red"}, body), "colour is 'red', but must be absent")


def test_a_repeated_key_is_refused():
    header, meta, body = unpack()
    text = seal(header, meta, body)[8:START]
    twice = DATA[8:START].replace(b'"actor/0/b":', b'"actor/0/w":', 1)
    refused(seal_text(twice, body), "a key appears twice")
    assert text
    meta_text = json.dumps(meta)[:-1] + ', "env": "other"}'
    whole = {"__metadata__": {"sorl_fast": meta_text}, **header}
    refused(seal_text(json.dumps(whole).encode(), body), "a key appears twice")


@pytest.mark.parametrize(
    "metadata",
    [
        *(None, {}, [], "x", {"sorl_fast": None}, {"sorl_fast": {}}, {"sorl_fast": ""}),
        *({"sorl_fast": "[1]"}, {"sorl_fast": "{"}, {"sorl_fast": "\ud800"}, {"other": "{}"}),
        {"sorl_fast": json.dumps(unpack()[1]), "other": ""},
        {"sorl_fast": "[" * 100_000},
        {"sorl_fast": json.dumps(unpack()[1])[:-1] + ', "x": ' + "9" * 5000 + "}"},
    ],
    ids=short,
)
def test_other_metadata_is_refused(metadata):
    header, _, body = unpack()
    refused(seal_text(json.dumps({"__metadata__": metadata, **header}).encode(), body))


def test_a_file_of_weights_without_metadata_is_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    safetensors.numpy.save_file({"actor/0/w": np.zeros((7, 8), np.float32)}, path)
    with pytest.raises(BadInput, match="__metadata__ is None"):
        load(path)


def entry_mutations(entry):
    first, last = entry["data_offsets"]
    shape = entry["shape"]
    return [
        *({**entry, "dtype": d} for d in ("F64", "BF16", "I32", "f32", None, 32)),
        *(
            {**entry, "shape": s}
            for s in ([*shape[::-1], 1], shape[1:], [*shape[:-1], shape[-1] + 1])
        ),
        *(
            {**entry, "shape": s}
            for s in (None, "x", [-n for n in shape], [float(n) for n in shape])
        ),
        {**entry, "shape": [HUGE, *shape[1:]]},
        *(
            {**entry, "data_offsets": o}
            for o in (None, [first], [first, last, last], [last, first])
        ),
        *({**entry, "data_offsets": [first + d, last + d]} for d in (-4, 4, 2**62, -HUGE)),
        *({**entry, "data_offsets": [first, last + d]} for d in (-4, 4, 2**63, HUGE)),
        {**entry, "data_offsets": [float(first), last]},
        {k: v for k, v in entry.items() if k != "dtype"},
        {k: v for k, v in entry.items() if k != "shape"},
        {k: v for k, v in entry.items() if k != "data_offsets"},
        {**entry, "stride": 1},
        *(None, [], "F32"),
    ]


@pytest.mark.parametrize("name", list(unpack()[0]))
def test_every_altered_tensor_entry_is_refused_by_name(name):
    header, meta, body = unpack()
    for entry in entry_mutations(header[name]):
        refused(seal(header | {name: entry}, meta, body))
    refused(seal({k: v for k, v in header.items() if k != name}, meta, body), "tensors is ")
    renamed = {("actor/7/w" if k == name else k): v for k, v in header.items()}
    refused(seal(renamed, meta, body), f"{name} is missing, but must be there")
    refused(seal(header | {"actor/7/w": header[name]}, meta, body), "tensors is ")


def test_swapped_shapes_and_overlapping_tensors_are_refused():
    header, meta, body = unpack()
    a, b = "actor/0/b", "actor/1/b"
    swap = {a: header[b], b: header[a]}  # a relabelling of equal shapes is another, whole file
    loads(seal(header | swap, meta, body))
    refused(seal(header | {a: header[b]}, meta, body), "tensors lie end to end")
    refused(seal(header | {"actor/0/w": header["actor/1/w"]}, meta, body), "actor/0/w shape is")


@pytest.mark.parametrize("name", list(unpack()[0]))
@pytest.mark.parametrize("value", [NAN, INF, -INF], ids=str)
def test_a_non_finite_weight_is_refused(name, value):
    header, meta, body = unpack()
    first, last = header[name]["data_offsets"]
    for at in (first, last - 4):
        raw = body[:at] + np.float32(value).tobytes() + body[at + 4 :]
        refused(seal(header, meta, raw), f"{name}[")


@pytest.mark.parametrize("cut", [1, 4, 64], ids=str)
def test_a_short_or_long_body_is_refused(cut):
    header, meta, body = unpack()
    refused(
        seal(header, meta, body[:-cut]), f"length is {len(seal(header, meta, body)) - cut} bytes"
    )
    refused(seal(header, meta, body + bytes(cut)), "as its header says")


def test_a_digest_in_escaped_digits_is_refused():
    header, meta, body = unpack()
    meta["sha256"] = "0" * 64
    text = json.dumps({"__metadata__": {"sorl_fast": json.dumps(meta)}, **header})
    text = text.replace("0" * 64, "\\u0030" * 64)
    refused(seal_text(text.encode(), body), "plain digits")


@pytest.mark.parametrize(
    "text",
    [
        *(
            b"",
            b"null",
            b"[]",
            b"\xff\xfe{}",
            b"\xef\xbb\xbf{}",
            b'{"a":NaN}',
            b'{"a":1}x',
            b"{" * 9999,
        ),
        *(b"[" * 100_000, b'{"a":' + b"9" * 5000 + b"}", b'{"a":-Infinity}'),
    ],
    ids=lambda t: t[:12].decode("latin1").encode("unicode_escape").decode(),
)
def test_a_header_that_is_no_json_object_is_refused(text):
    refused(seal_text(text))


def test_memory_stays_below_twice_the_file():
    policy = make_policy(O=40, A=5, H=256, depth=3)
    data = dumps(policy)
    tracemalloc.start()
    loads(data)
    extra = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert extra < 1.1 * len(data)  # `data` itself, held by the caller, is the first time


@pytest.mark.parametrize(
    "change",
    [
        *({"obs_dim": 2**31 - 1}, {"hidden": 2**31 - 1}, {"depth": 2**31 - 1}, {"m_disc": 1 << 10}),
        *({"ensemble": 2**31 - 1}, {"act_dim": 2**31 - 1}),
    ],
    ids=str,
)
def test_huge_claims_allocate_nothing(change):
    header, meta, body = unpack()
    data = seal(header, meta | change, body)
    tracemalloc.start()
    try:
        loads(data)
    except BadInput:
        assert "m_disc" not in change
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200_000


@pytest.mark.slow
def test_a_hostile_header_is_bounded():
    text = b'{"a":[' + b"[]," * ((1 << 20) // 3 - 10) + b"[]]}"
    tracemalloc.start()
    refused(seal_text(text))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20
    refused(seal_text(b" " * ((1 << 20) + 8)), "header length is")
