"""Whether and how MuJoCo renders here without a display: tried in a child, for a GL library may crash."""

import os

from ..errors import BadInput
from ..isolated import Item, Note, Outcome, run

WAYS = ("egl", "osmesa")  # values of MUJOCO_GL, the faster first
_NOTHING = (
    "",
    "0",
    "false",
    "no",
    "off",
    "disable",
    "disabled",
)  # of MUJOCO_GL: nobody chose a way
_SCENE = "<mujoco><worldbody><light pos='0 0 3'/><geom size='1'/></worldbody></mujoco>"


def way_to_render() -> str:
    """Return the value of MUJOCO_GL with which a child renders: the user's, or the first that works.

    Raises
    ------
    BadInput
        None does. The message is a line: what was tried, why it failed, and what to install.
    """
    asked = os.environ.get("MUJOCO_GL", "").lower()
    ways = WAYS if asked in _NOTHING else (asked,)
    reasons = []
    for way in ways:
        (outcome,) = run(f"{__name__}:probe", [{}], environment={"MUJOCO_GL": way})
        if outcome["status"] == "ok":
            return way
        reasons.append(f"{way}: {outcome['reason'][:120]}")
    raise BadInput(
        f"nothing here renders without a display ({'; '.join(reasons)}): apt install libegl1 "
        "libgl1-mesa-dri (or libosmesa6), or set MUJOCO_GL to what your machine has"
    )


def probe(item: Item, note: Note) -> Outcome:
    """Render a ball; a worker of `isolated.run`."""
    import mujoco

    model = mujoco.MjModel.from_xml_string(_SCENE)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    with mujoco.Renderer(model, 32, 32) as renderer:
        renderer.update_scene(data)
        picture = renderer.render()
    blank = picture.min() == picture.max()
    return {"status": "failed" if blank else "ok", "reason": "it draws nothing" if blank else ""}
