"""The C++ loader takes exactly the files that the Python loader takes."""

import hashlib
import importlib.util
import json
import os
import random
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from forms import FORMS, form_policy

from sorl_fast import BadInput
from sorl_fast.act.policy_file import dumps, loads

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler"
    ),
]


def load_corpus():
    spec = importlib.util.spec_from_file_location("make_corpus", CSRC / "fuzz" / "make_corpus.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CORPUS = load_corpus()
GOOD = CORPUS.policy(O=3, A=2, H=2, D=2, E=2, obs_mean=[0.5, 0, -1], obs_std=[1, 2, 0.5])
VALUES = (
    *(None, True, False, 0, 1, 2, 3, 4, 8, -1, 2**10, 2**11, 2**31 - 1, 2**31, 2**64, 10**30),
    *(1.0, 0.5, -0.0, 1e39, 3.4028235e38, 3.4028235677973366e38, 1e-46, float("nan"), float("inf")),
    *("", "mean", "min", "max", "é", "\ud800", "x" * 4096, "x" * 4097, "0" * 64, "F" * 64),
    *([], [0], [1, 1], [-1.0, -2], [3, 2, 1], [1, 2, float("nan")], [1, 2, 10**39], [1, 2, "3"]),
    *([1, 2, True], [1, 2, None], {}, {"a": 1}, {"a": [1, {"b": None}]}, {"a": "\ud83d\ude00"}),
)
FORM_VALUES = (
    *([3], [1, 2, 4], [1024], [1025], [2, 1], [1, 1], [0, 1], [1.0], [True], [*range(1, 12)]),
    *([*range(1, 13)], [0.5] * 5, [-0.5] * 5, [0.5] * 4, [[0.5]] * 5, 64, 65, 2**31 - 1, -0.5),
    *("euler", "direct", "tanh", "diffusion", "shortcut", 2.0**128 - 2.0**80, 2.0**128 - 2.0**103),
)
CHOICE_VALUES = (
    *([0.5, 0.5], [0.25] * 4, [0.2] * 5, [0.125, 0.875], [0.5, 0.5000009], [0.5, 0.5000011]),
    *([0.5, 0.25, True], [0.5, None, 0.5], [1.0], [1], [2, -1], [1, 0], [1, 10**39], [1.0, 1e-60]),
    *([0.5, 0.5 - 1e-11], [0.5, 0.5 + 1e-8], [1 / 3] * 3, [0.5, [0.5]], 5, 4096, 4097, 2048, 2049),
)
RULE_NAMES = (
    *("argmax", "medoid", "medoid:1/2", "medoid:1", "medoid:2/4", "medoid:0.5", "medoid:3/2"),
    *("medoid:1/32768", "medoid:1/32769", "medoid:01/2", "medoid:1/02", "medoid:1/1", "medoid:0/2"),
    *(
        "medoid:",
        "medoid:1/",
        "medoid:/2",
        "medoid: 1/2",
        "medoid:1/2 ",
        "medoid:-1/2",
        "medoid:+1",
    ),
    *("nearest:1/4", "better:1/3", "soft:1", "soft:32768", "soft:32769", "soft:3/2", "soft:2/4"),
    *("soft:99999999999999999999", "soft:1/99999999999999999999", "centre", "centre:1", "argmax:1"),
    *("argmax:", "Argmax", "argma", "argmax ", "best", "soft:1e0", "medoid:1:2", "x" * 100),
)
SOUND_NUMBERS = ("2e0", "0.02e2", "20E-1", "2", "2.0000000000000000000000000001", "200e-2")


def unpack(data):
    n = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + n])
    return header, json.loads(header.pop("__metadata__")["sorl_fast"]), data[8 + n :]


def seal(head, body):
    """Return a file whose digest is true, wherever in the header its last 64 digits stand."""
    data = bytearray(struct.pack("<Q", len(head)) + head + body)
    runs = [m.start() for m in re.finditer(rb"(?=[0-9a-f]{64})", data[: 8 + len(head)])]
    if runs:
        at = runs[-1]
        data[at : at + 64] = b"0" * 64
        data[at : at + 64] = hashlib.sha256(data).hexdigest().encode()
    return bytes(data)


def pack(header, meta, body, *, metadata=None, padding=b""):
    text = meta if isinstance(meta, str) else json.dumps(meta)
    table = {"sorl_fast": text} if metadata is None else metadata
    return seal(json.dumps({"__metadata__": table, **header}).encode() + padding, body)


def nested(levels, leaf=0):
    value = leaf
    for _ in range(levels):
        value = {"a": value}
    return value


def field_mutations():
    header, meta, body = unpack(GOOD)
    for name in (*meta, "novel"):
        for value in VALUES:
            yield f"{name}={value!r:.30}", pack(header, meta | {name: value}, body)
    for name in meta:
        kept = {k: v for k, v in meta.items() if k != name}
        yield f"without {name}", pack(header, kept, body)
        yield f"{name} last", pack(header, {**kept, name: meta[name]}, body)
        twice = json.dumps(meta)[:-1] + f", {json.dumps(name)}: {json.dumps(meta[name])}}}"
        yield f"{name} twice", pack(header, twice, body)
    for number in SOUND_NUMBERS:
        for name in ("action_high", "obs_std", "depth"):
            text = json.dumps(meta | {name: "@"})
            many = f"[{number}, {number}]" if name == "action_high" else f"[{number}, 1, 1]"
            yield (
                f"{name} {number}",
                pack(header, text.replace('"@"', number if name == "depth" else many), body),
            )
    for n in (1, 58, 59, 60, 61, 62, 70):
        yield f"config {n} deep", pack(header, meta | {"config": nested(n)}, body)
        lists = {"a": json.loads("[" * n + "]" * n)}
        yield f"config of {n} lists", pack(header, meta | {"config": lists}, body)
    for n in (255, 256, 257):
        yield (
            f"config of {n} keys",
            pack(header, meta | {"config": {str(i): i for i in range(n)}}, body),
        )
        yield f"config key of {n}", pack(header, meta | {"config": {"k" * n: 0}}, body)
        yield f"config key of {n} é", pack(header, meta | {"config": {"é" * (n // 2): 0}}, body)
    for text in (
        '{"a": 1, "a": 2}',
        '{"a": 1e999}',
        '{"a": NaN}',
        '{"a": 01}',
        '{"a": 1' + "0" * 400 + "}",
    ):
        yield (
            f"config {text:.20}",
            pack(header, json.dumps(meta | {"config": "@"}).replace('"@"', text), body),
        )


def rearranged(of, header, meta, body, field, name):
    """A part `name` of an object left out, at its end, and twice."""
    value = meta[field]
    rest = {k: v for k, v in value.items() if k != name}
    yield f"{of} without {name}", pack(header, meta | {field: rest}, body)
    if name in value:
        last = meta | {field: {**rest, name: value[name]}}
        yield f"{of} {name} last", pack(header, last, body)
        twice = json.dumps(value)[:-1] + f", {json.dumps(name)}: {json.dumps(value[name])}}}"
        text = json.dumps(meta | {field: "@"}).replace('"@"', twice)
        yield f"{of} {name} twice", pack(header, text, body)


def form_mutations():
    for kind in ("euler", "direct", "direct reading", "tanh", "diffusion", "diffusion quiet"):
        header, meta, body = unpack(dumps(form_policy(FORMS[kind])))
        form = meta["form"]
        for name in (*form, "novel", "clip", "counts"):
            for value in (*VALUES, *FORM_VALUES, [form.get(name), form.get(name)]):
                data = pack(header, meta | {"form": form | {name: value}}, body)
                yield f"{kind} {name}={value!r:.30}", data
            yield from rearranged(kind, header, meta, body, "form", name)
            rest = {k: v for k, v in form.items() if k != name}
            yield f"{kind} {name} renamed", pack(header, meta | {"form": rest | {"Kind": 1}}, body)
        for name in ("times", "z_scales", "v_scales", "noise_scales"):
            for value in VALUES if name in form else ():
                changed = form | {name: [*form[name][:2], value, *form[name][3:]]}
                yield (
                    f"{kind} {name}[2]={value!r:.30}",
                    pack(header, meta | {"form": changed}, body),
                )
        for number in (*SOUND_NUMBERS, "01", "1e999", "NaN", "1.", "-0", "-0.0", "-1e-60", "1e-60"):
            for name in ("temperature", "noise_scale", "noise_clip", "clip", "blocks"):
                if name in form:
                    text = json.dumps(meta | {"form": form | {name: "@"}}).replace('"@"', number)
                    yield f"{kind} {name} {number}", pack(header, text, body)
        for value in (*VALUES, kind, {"kind": kind}, [form]):
            yield f"{kind} form={value!r:.30}", pack(header, meta | {"form": value}, body)
        for name in ("format", "m_disc", "m_btt", "ensemble", "act_dim"):
            for value in VALUES:
                yield f"{kind} {name}={value!r:.30}", pack(header, meta | {name: value}, body)
        yield (
            f"{kind} without form",
            pack(header, {k: v for k, v in meta.items() if k != "form"}, body),
        )
        alone = unpack(dumps(form_policy(FORMS[kind], E=0)))
        yield f"{kind} alone", pack(*alone)
        for name, entry in header.items():
            yield f"{kind} alone with {name}", pack(alone[0] | {name: entry}, *alone[1:])
    for n in (254, 255, 256):
        header, meta, body = unpack(dumps(form_policy(FORMS["diffusion"])))
        lists = {k: [0.5] * n for k in ("times", "z_scales", "v_scales", "noise_scales")}
        yield f"diffusion of {n}", pack(header, meta | {"form": meta["form"] | lists}, body)


def choice_mutations():
    sound = CORPUS.CHOICE | {"steps": [0.5, 0.25, 0.25]}
    files = (
        (CORPUS.policy(choice=sound, O=3, A=2), sound),
        (CORPUS.policy(choice=CORPUS.CHOICE, O=3, A=2), CORPUS.CHOICE),
        (
            CORPUS.policy(form=CORPUS.FORMS["euler"], choice=sound | {"steps": 3}),
            sound | {"steps": 3},
        ),
        (
            CORPUS.policy(form=CORPUS.FORMS["direct"], choice=sound | {"steps": 1}, E=0),
            sound | {"steps": 1},
        ),
    )
    for i, (data, choice) in enumerate(files):
        header, meta, body = unpack(data)

        def packed(choice, header=header, meta=meta, body=body):
            return pack(header, meta | {"choice": choice}, body)

        for name in (*choice, "novel"):
            for value in (*VALUES, *CHOICE_VALUES):
                yield f"{i} {name}={value!r:.40}", packed(choice | {name: value})
            yield from rearranged(i, header, meta, body, "choice", name)
        for rule in RULE_NAMES:
            for N in (1, 2):
                yield f"{i} {rule} {N}", packed(choice | {"rule": rule, "candidates": N})
        for number in (*SOUND_NUMBERS, "01", "1e999", "NaN", "-0", "1e-400", "0.5"):
            for name in ("steps", "candidates"):
                text = json.dumps(meta | {"choice": choice | {name: "@"}}).replace('"@"', number)
                yield f"{i} {name} {number}", pack(header, text, body)
        for value in (*VALUES, [choice]):
            yield f"{i} choice={value!r:.30}", packed(value)
        for name in ("format", "form", "m_disc", "ensemble"):
            for value in VALUES:
                yield f"{i} {name}={value!r:.30}", pack(header, meta | {name: value}, body)
        for name in ("form", "choice"):
            kept = {k: v for k, v in meta.items() if k != name}
            yield f"{i} without {name}", pack(header, kept, body)
            yield f"{i} {name} last", pack(header, {**kept, name: meta[name]}, body)


def map_mutations():
    more = {"choice": CORPUS.CHOICE, "form": CORPUS.FORMS["euler"]}
    files = (
        CORPUS.policy(action_map={"low": [-2.5, 0.1], "high": [0.7, 3.3]}, O=3, A=2),
        CORPUS.policy(action_map=CORPUS.MAP, **more | {"choice": CORPUS.CHOICE | {"steps": 3}}),
    )
    for i, data in enumerate(files):
        header, meta, body = unpack(data)
        units, A = meta["action_map"], meta["act_dim"]

        def packed(units, header=header, meta=meta, body=body):
            return pack(header, meta | {"action_map": units}, body)

        for name in ("low", "high", "novel"):
            for value in VALUES:
                yield f"{i} {name}={value!r:.40}", packed(units | {name: value})
                for at in range(A if name != "novel" else 0):
                    numbers = [*units[name][:at], value, *units[name][at + 1 :]]
                    yield f"{i} {name}[{at}]={value!r:.40}", packed(units | {name: numbers})
            for number in (
                *(2.0**126, -(2.0**126), 2.0**126 * (1 + 2.0**-24), 2.0**126 * (1 + 2.0**-23)),
                *(2.0**-100, 2.0**-100 * (1 - 2.0**-26), 2.0**-100 * (1 - 2.0**-24), 1e-46, -0.0),
                *(2**126, 10**37, 2**127, 0.1, 0.7, -2.5),
            ):
                yield f"{i} {name} all {number}", packed(units | {name: [number] * A})
            yield from rearranged(i, header, meta, body, "action_map", name)
        for number in (*SOUND_NUMBERS, "01", "1e999", "NaN", "-0", "1e-46", "3e38"):
            text = json.dumps(meta | {"action_map": units | {"high": ["@"] * A}})
            yield f"{i} high {number}", pack(header, text.replace('"@"', number), body)
        for value in (*VALUES, [units]):
            yield f"{i} action_map={value!r:.30}", packed(value)
        for name in ("format", "form", "choice", "act_dim", "action_low", "action_high"):
            for value in (*VALUES, [-1.5] * A, [0.5] * A, [1.5] * A):
                yield f"{i} {name}={value!r:.30}", pack(header, meta | {name: value}, body)
        for name in ("form", "choice", "action_map"):
            kept = {k: v for k, v in meta.items() if k != name}
            yield f"{i} without {name}", pack(header, kept, body)
            yield f"{i} {name} last", pack(header, {**kept, name: meta[name]}, body)


def chunk_mutations():
    plain = {"A": 4, "chunk": 2}
    mapped = plain | {"action_map": {"low": [-2.5] * 4, "high": [0.5] * 4}, "E": 0}
    mapped["form"] = CORPUS.FORMS["diffusion"]
    for i, data in enumerate((CORPUS.policy(**plain), CORPUS.policy(**mapped))):
        header, meta, body = unpack(data)
        for value in (*VALUES, 5, 6, 12, -2, -4):
            yield f"{i} chunk={value!r:.30}", pack(header, meta | {"chunk": value}, body)
        for number in SOUND_NUMBERS:
            text = json.dumps(meta | {"chunk": "@"}).replace('"@"', number)
            yield f"{i} chunk {number}", pack(header, text, body)
        for name in ("format", "form", "choice", "action_map", "act_dim"):
            for value in VALUES:
                yield f"{i} {name}={value!r:.30}", pack(header, meta | {name: value}, body)
        for name in ("form", "choice", "action_map", "chunk"):
            kept = {k: v for k, v in meta.items() if k != name}
            yield f"{i} without {name}", pack(header, kept, body)
            yield f"{i} {name} last", pack(header, {**kept, name: meta[name]}, body)
        twice = json.dumps(meta)[:-1] + ', "chunk": 2}'
        yield f"{i} chunk twice", pack(header, twice, body)


def tensor_mutations(header, meta, body, names, lead=""):
    for name in names:
        entry = header[name]
        rest = {k: v for k, v in header.items() if k != name}
        yield f"{lead}without {name}", pack(rest, meta, body)
        yield f"{lead}{name} last", pack({**rest, name: entry}, meta, body)
        yield f"{lead}{name} renamed", pack({**rest, name + "x": entry}, meta, body)
        for key in (*entry, "novel"):
            yield (
                f"{lead}{name} without {key}",
                pack(header | {name: {k: v for k, v in entry.items() if k != key}}, meta, body),
            )
            for value in (*VALUES, "F32", "F16", "I32", [int(n) + 1 for n in entry["shape"]]):
                yield (
                    f"{lead}{name}/{key}={value!r:.30}",
                    pack(header | {name: entry | {key: value}}, meta, body),
                )
        begin, end = entry["data_offsets"]
        for offsets in ([begin + 4, end + 4], [begin, end + 4], [begin - 4, end], [end, begin]):
            yield (
                f"{lead}{name} at {offsets}",
                pack(header | {name: entry | {"data_offsets": offsets}}, meta, body),
            )


def ood_mutations():
    formed = {"form": CORPUS.FORMS["diffusion"], "E": 0, "A": 4, "chunk": 2}
    for i, more in enumerate(({}, formed)):
        header, meta, body = unpack(CORPUS.policy(O=3, ood=CORPUS.OOD, **more))
        ood = meta["ood"]

        def packed(ood, header=header, meta=meta, body=body):
            return pack(header, meta | {"ood": ood}, body)

        for name in (*ood, "novel"):
            for value in (
                *VALUES,
                1e-46,
                1.5e-46,
                2.0**-149,
                1 - 1e-12,
                1 + 1e-12,
                1e-300,
                -1e-300,
            ):
                yield f"{i} {name}={value!r:.40}", packed(ood | {name: value})
            for number in (
                *SOUND_NUMBERS,
                "01",
                "1e999",
                "NaN",
                "-0",
                "0.5",
                "5e-1",
                "3.4028236e38",
            ):
                text = json.dumps(meta | {"ood": ood | {name: "@"}}).replace('"@"', number)
                yield f"{i} {name} {number}", pack(header, text, body)
            yield from rearranged(i, header, meta, body, "ood", name)
        for value in (*VALUES, [ood]):
            yield f"{i} ood={value!r:.30}", packed(value)
        for name in ("format", "form", "choice", "action_map", "chunk", "obs_dim", "ensemble"):
            for value in VALUES:
                yield f"{i} {name}={value!r:.30}", pack(header, meta | {name: value}, body)
        for name in ("form", "choice", "action_map", "chunk", "ood"):
            kept = {k: v for k, v in meta.items() if k != name}
            yield f"{i} without {name}", pack(header, kept, body)
            yield f"{i} {name} last", pack(header, {**kept, name: meta[name]}, body)
        yield from tensor_mutations(header, meta, body, ("ood/mean", "ood/whiten"), f"{i} ")
        for bits in (b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\0\0\x80\xff", b"\x01\0\0\0"):
            yield f"{i} whiten {bits.hex()}", pack(header, meta, body[:-4] + bits)
    unasked = {"ood/mean": header["ood/mean"], "ood/whiten": header["ood/whiten"]}
    header, meta, body = unpack(GOOD)
    yield "tensors without a field", pack(header | unasked, meta, body)


def header_mutations():
    header, meta, body = unpack(GOOD)
    yield from tensor_mutations(header, meta, body, header)
    for value in (
        None,
        {},
        {"format": "pt"},
        {"sorl_fast": 1},
        {"sorl_fast": "{}", "a": "b"},
        [],
        1,
    ):
        yield f"metadata {value}", pack(header, meta, body, metadata=value)
    for n in range(9):
        yield f"padded by {n}", pack(header, meta, body, padding=b" " * n)
    for padding in (b"\n\t\r ", b"\0", b"x", b"{}", b"\x0b"):
        yield f"padded by {padding}", pack(header, meta, body, padding=padding)
    yield "led by a space", seal(b" " + GOOD[8 : len(GOOD) - len(body)], body)
    yield "led by a mark", seal(b"\xef\xbb\xbf" + GOOD[8 : len(GOOD) - len(body)], body)
    yield "a float more", pack(header, meta, body + bytes(4))
    yield "a float less", pack(header, meta, body[:-4])
    for bits in (b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\0\0\x80\xff", b"\x01\0\0\0"):
        yield f"weight {bits.hex()}", pack(header, meta, body[:-4] + bits)


def random_mutations():
    """Change one to three bytes of the header at random, and make the digest true again."""
    draw = random.Random(0)
    n = int.from_bytes(GOOD[:8], "little")
    alphabet = b'0123456789abcdefFnul"\\,:{}[]-+. \x00\x7f\x80\xc3\xa9/bcgw'
    for i in range(1500):
        head = bytearray(GOOD[8 : 8 + n])
        for _ in range(draw.randint(1, 3)):
            at = draw.randrange(len(head))
            if draw.random() < 0.3:
                del head[at]
            elif draw.random() < 0.5:
                head.insert(at, draw.choice(alphabet))
            else:
                head[at] = draw.choice(alphabet)
        yield f"random {i}", seal(bytes(head), GOOD[8 + n :])


def damage():
    """Cut and change the file without a new digest."""
    draw = random.Random(1)
    for n in (0, 1, 7, 8, 9, 100, len(GOOD) - 4, len(GOOD) - 1):
        yield f"cut at {n}", GOOD[:n]
    for n in (0, 1, 2**20, 2**20 + 1, 2**32, 2**63, 2**64 - 1):
        yield f"length {n}", struct.pack("<Q", n) + GOOD[8:]
    for _ in range(300):
        at, bit = draw.randrange(len(GOOD)), draw.randrange(8)
        yield f"bit {bit} of {at}", GOOD[:at] + bytes([GOOD[at] ^ 1 << bit]) + GOOD[at + 1 :]


def sound():
    yield "good", GOOD
    yield from CORPUS.seeds().items()


@pytest.fixture(scope="module")
def check_policy(tmp_path_factory):
    program = tmp_path_factory.mktemp("loader") / "check_policy"
    sources = ["tests/check_policy.cpp", "json.cpp", "sha256.cpp", "form.cpp", "form_parser.cpp"]
    sources += ["policy_file.cpp", "policy_parser.cpp", "choice_parser.cpp", "rule.cpp"]
    sources += ["bounds_parser.cpp", "tensor_parser.cpp", "ood_parser.cpp"]
    sources += ["schedule.cpp"]
    compiler = os.environ.get("CXX", "g++")
    subprocess.run(
        [compiler, "-std=c++17", "-O1", *sources, "-o", str(program)], cwd=CSRC, check=True
    )
    return program


def native_answers(program, folder, files):
    paths = []
    for i, data in enumerate(files):
        path = folder / str(i)
        path.write_bytes(data)
        paths.append(str(path))
    lines = []
    for i in range(0, len(paths), 500):
        run = subprocess.run(
            [program, *paths[i : i + 500]], check=True, capture_output=True, text=True
        )
        lines += run.stdout.splitlines()
    assert len(lines) == len(paths)
    return lines


def python_answer(data):
    try:
        loads(data)
    except BadInput as err:
        return f"refused {err}"
    return "loaded"


@pytest.mark.parametrize(
    ("make", "least_loaded", "least_refused"),
    [
        (sound, 5, 3),
        (field_mutations, 60, 400),
        (form_mutations, 100, 1000),
        (choice_mutations, 60, 800),
        (map_mutations, 60, 500),
        (chunk_mutations, 12, 300),
        (ood_mutations, 100, 600),
        (header_mutations, 40, 1000),
        (random_mutations, 3, 1000),
        (damage, 0, 300),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_both_loaders_agree(check_policy, tmp_path, make, least_loaded, least_refused):
    names, files = zip(*make(), strict=True)
    native = native_answers(check_policy, tmp_path, files)
    loaded = 0
    for name, data, answer in zip(names, files, native, strict=True):
        python = python_answer(data)
        assert answer.split()[0] == python.split()[0], f"{name}: C++: {answer}; Python: {python}"
        loaded += answer.startswith("loaded")
    # the corpus must hold both kinds, or agreeing would mean nothing
    assert loaded >= least_loaded
    assert len(files) - loaded >= least_refused


def test_the_form_that_the_native_runtime_does_not_run_is_named(check_policy, tmp_path):
    files = [dumps(form_policy(form)) for form in FORMS.values()]
    answers = dict(zip(FORMS, native_answers(check_policy, tmp_path, files), strict=True))
    says = "(blocks is 2), which the native runtime does not run. Act with it from Python: backend numpy"
    residual = answers.pop("residual")
    assert residual.startswith("refused ")
    assert says in residual
    assert [a for a in answers.values() if not a.startswith("loaded")] == []


def test_unreadable_files_are_named(check_policy, tmp_path):
    missing = tmp_path / "missing"
    run = subprocess.run(
        [check_policy, missing, tmp_path], check=True, capture_output=True, text=True
    )
    first, second = run.stdout.splitlines()
    assert first.startswith(f"unreadable {missing}: cannot be read: No such file")
    assert second.startswith(f"unreadable {tmp_path}: cannot be read: it is no regular file")
