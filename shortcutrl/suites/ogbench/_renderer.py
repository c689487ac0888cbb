"""Whether this machine can render the images of `visual-*` environments."""

import functools
import os
import subprocess
import sys

_RENDER = """
import mujoco
with mujoco.Renderer(mujoco.MjModel.from_xml_string("<mujoco/>"), 8, 8) as renderer:
    renderer.render()
"""


def check_renderer(name: str, *, here: bool) -> None:
    """Raise if `name` has images and MuJoCo cannot render them: in new processes and, if `here`, in this one."""
    if not name.startswith("visual-"):
        return
    backend = os.environ.get("MUJOCO_GL", "")
    if (reason := _failure(backend)) is not None:
        raise OSError(
            f"{name} needs a renderer, but MuJoCo cannot render with MUJOCO_GL={backend!r}. Set MUJOCO_GL=egl before "
            "Python starts; on Debian, `apt install libegl1 libgl1-mesa-dri`. Or set MUJOCO_GL=osmesa, after `apt "
            f"install libosmesa6`. MuJoCo says: {reason}"
        )
    if here and "mujoco" in sys.modules and _failure(imported := _imported_backend()) is not None:
        raise OSError(
            f"{name} needs a renderer, but MuJoCo was imported before MUJOCO_GL={backend!r} was set, and cannot render "
            f"with {imported!r}, which it took then. Restart Python, with MUJOCO_GL set before it starts."
        )


def _imported_backend() -> str:
    """What this process renders with: MuJoCo reads MUJOCO_GL once, when it is imported."""
    context = getattr(sys.modules["mujoco"], "GLContext", None)
    return "off" if context is None else context.__module__.rpartition(".")[-1]


@functools.cache
def _failure(backend: str) -> str | None:
    """Why a picture cannot be rendered, or `None`. A broken driver may crash its process, so another one tries."""
    command, env = [sys.executable, "-c", _RENDER], os.environ | {"MUJOCO_GL": backend}
    try:
        result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        return "no picture after 120 seconds"
    if result.returncode == 0:
        return None
    said = [line for line in result.stderr.splitlines() if "Error" in line and not line.startswith(" ")]
    return said[-1] if said else f"exit code {result.returncode}"
