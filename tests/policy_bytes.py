"""A policy's file taken apart, and put together again with a digest of what is now inside."""

import hashlib
import json

import numpy as np
import pytest
from policies import make_policy

from sorl_fast import BadInput
from sorl_fast.act.policy_file import dumps, loads

POLICY = make_policy(normalise=True)
DATA = dumps(POLICY)


def unpack(data=DATA):
    """Return the header without its metadata, the metadata and the tensors' bytes."""
    n = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + n])
    meta = json.loads(header.pop("__metadata__")["sorl_fast"])
    return header, meta, data[8 + n :]


DIGEST = unpack()[1]["sha256"]


def seal(header, meta, body):
    """Undo `unpack`, with the digest of what is now inside: only the field checks can refuse it."""
    meta = {k: "0" * 64 if v == DIGEST else v for k, v in meta.items()}
    text = json.dumps({"__metadata__": {"sorl_fast": json.dumps(meta)}, **header}).encode()
    text += b" " * (-len(text) % 8)
    data = len(text).to_bytes(8, "little") + text + body
    return data.replace(b"0" * 64, hashlib.sha256(data).hexdigest().encode(), 1)


def seal_any(header, meta, body):
    """`seal` of a file that is not `DATA`: whatever its digest was, it is made anew."""
    return seal(header, meta | {"sha256": DIGEST}, body)


def refused(data, message):
    """Expect the loader to refuse a file, briefly, in words with `message` among them."""
    with pytest.raises(BadInput) as caught:
        loads(data, "the/file")
    text = str(caught.value)
    assert text.startswith("policy file the/file: ")
    assert message in text, text
    assert len(text) < 1000
    return text


def seal_text(text, body=b""):
    return len(text).to_bytes(8, "little") + text + body


def check_same(a, b):
    assert dumps(a) == dumps(b)
    for x, y in zip((*a.actor, *a.critic), (*b.actor, *b.critic), strict=True):
        for u, v in zip(x, y, strict=True):
            np.testing.assert_array_equal(u, v)
