"""OGBench's scripted oracles, which act as in its published commands.

The simulator is imported only when a behaviour is made, in the process that runs it.
"""

import functools
import warnings
from typing import Any, NamedTuple, Protocol

import numpy as np


class Recipe(NamedTuple):
    """The published size of a dataset."""

    episodes: int
    episode_steps: int


_MANIPULATION = {"cube-single": 1000, "cube-double": 1000, "cube-triple": 3000, "cube-quadruple": 5000, "scene": 1000}
_MANIPULATION |= {"puzzle-3x3": 1000, "puzzle-4x4": 1000, "puzzle-4x5": 3000, "puzzle-4x6": 5000}
_MAZES = {"medium": Recipe(1000, 1001), "large": Recipe(1000, 1001), "giant": Recipe(500, 2001)}
_MAZES |= {"teleport": Recipe(1000, 1001)}

RECIPES = {f"{scene}-{kind}-v0": Recipe(n, 1001) for kind in ("play", "noisy") for scene, n in _MANIPULATION.items()}
RECIPES |= {f"visual-{dataset}": recipe for dataset, recipe in RECIPES.items()}
RECIPES |= {f"pointmaze-{maze}-navigate-v0": recipe for maze, recipe in _MAZES.items()}
RECIPES |= {f"pointmaze-{maze}-stitch-v0": Recipe(5000, 201) for maze in _MAZES}

# The probability that a cube is stacked on another, drawn for each episode from this range.
_STACKING = {"single": (0.0, 0.0), "double": (0.0, 0.25), "triple": (0.05, 0.35), "quadruple": (0.1, 0.5)}


class Behaviour(Protocol):
    """Acts in `env`; draws what it needs from NumPy's global generator, as OGBench's oracles do."""

    env: Any

    def reset(self, seed: int, rng: np.random.Generator) -> tuple[Any, dict[str, Any]]: ...
    def act(self, obs: Any, info: dict[str, Any]) -> np.ndarray: ...
    def after(self, info: dict[str, Any]) -> None: ...  # after a step; sets a new target when the old one is reached
    def healthy(self, info: dict[str, Any]) -> bool: ...


def ignore_harmless_warnings() -> None:
    """Filter them in the whole process, because they also come later, whenever an action space is read."""
    warnings.filterwarnings("ignore", message=".*precision lowered by casting.*")  # from OGBench's action space
    warnings.filterwarnings("ignore", message=".*DISPLAY environment variable is missing")  # matters only for rendering


def make_behaviour(dataset: str, episode_steps: int) -> Behaviour:
    ignore_harmless_warnings()
    scene, _, kind = dataset.removesuffix("-v0").rpartition("-")
    return (Navigation if scene.startswith("pointmaze") else Manipulation)(scene, kind, episode_steps)


def record(behaviour: Behaviour, sequence: np.random.SeedSequence) -> dict[str, np.ndarray] | None:
    """Record one episode, or `None` if it became unhealthy."""
    env_seed, oracle_seed = (int(s) for s in sequence.generate_state(2))
    np.random.seed(oracle_seed)  # noqa: NPY002
    obs, info = behaviour.reset(env_seed, np.random.default_rng(oracle_seed))
    steps, done = [], False
    while not done:
        action = np.clip(behaviour.act(obs, info), -1, 1)
        next_obs, _, terminated, truncated, info = behaviour.env.step(action)
        done = terminated or truncated
        behaviour.after(info)
        step = {
            "observations": obs if obs.dtype == np.uint8 else np.float32(obs),
            "actions": np.float32(action),
            "terminals": np.bool_(done),
            "qpos": np.float32(info["prev_qpos"]),
            "qvel": np.float32(info["prev_qvel"]),
        }
        if "prev_button_states" in info:
            step["button_states"] = np.int64(info["prev_button_states"])
        if not behaviour.healthy(info):
            return None
        steps.append(step)
        obs = next_obs
    return {key: np.stack([step[key] for step in steps]) for key in steps[0]}


class Manipulation:
    """The robot arm. `play`: plans with smooth noise. `noisy`: closed loop, white noise and random actions."""

    def __init__(self, scene: str, kind: str, episode_steps: int):
        import gymnasium
        import ogbench.manipspace  # noqa: F401  (registers the environments)
        from ogbench.manipspace.oracles.markov import button_markov, cube_markov, drawer_markov, window_markov
        from ogbench.manipspace.oracles.plan import button_plan, cube_plan, drawer_plan, window_plan

        options = {"terminate_at_goal": False, "mode": "data_collection", "max_episode_steps": episode_steps}
        self.env: Any = gymnasium.make(f"{scene}-v0", **options)
        scene = scene.removeprefix("visual-")
        self.scene, self.noisy, self.noise = scene, kind == "noisy", 0.0
        if self.noisy:
            settings: dict[str, Any] = {"env": self.env, "min_norm": 0.4}
            cube, button = cube_markov.CubeMarkovOracle, button_markov.ButtonMarkovOracle
            drawer, window = drawer_markov.DrawerMarkovOracle, window_markov.WindowMarkovOracle
        else:
            settings = {"env": self.env, "noise": 0.1, "noise_smoothing": 0.5}
            cube, button = cube_plan.CubePlanOracle, button_plan.ButtonPlanOracle
            drawer, window = drawer_plan.DrawerPlanOracle, window_plan.WindowPlanOracle
        self.random_actions = 0.2 if scene.startswith("puzzle") else 0.1
        if scene.startswith("puzzle"):
            self.oracles = {"button": button(gripper_always_closed=True, **settings)}
        else:
            self.oracles = {"cube": cube(**settings)}
        if scene == "scene":
            others = {"button": button, "drawer": drawer, "window": window}
            self.oracles |= {name: oracle(**settings) for name, oracle in others.items()}

    def reset(self, seed, rng):
        obs, info = self.env.reset(seed=seed)
        self.stacking = rng.uniform(*_STACKING.get(self.scene.removeprefix("cube-"), (0.5, 0.5)))
        self.noise = rng.uniform(0, 0.1)
        self._pursue(obs, info)
        return obs, info

    def act(self, obs, info):
        if self.noisy and np.random.rand() < self.random_actions:  # noqa: NPY002
            return np.random.uniform(-1, 1, 5)  # noqa: NPY002  (the action space's own generator is not seeded)
        action = np.asarray(self.oracle.select_action(obs, info))
        if self.noisy:
            action = action + np.random.normal(0, self.noise * np.array([1, 1, 1, 3, 10]))  # noqa: NPY002
        return action

    def after(self, info):
        if self.oracle.done:
            self._pursue(*self.env.unwrapped.set_new_target(p_stack=self.stacking))

    def healthy(self, info):
        """OGBench's check for `scene`: the cube is not too far right, and if it is too far left it is in the drawer."""
        y, z = info["prev_qpos"][15:17] if self.scene == "scene" else (0.0, 0.0)
        return not (y >= 0.29 or (y <= -0.3 and not 0.06 <= z <= 0.08))

    def _pursue(self, obs, info):
        self.oracle = self.oracles[info["privileged/target_task"]]
        self.oracle.reset(obs, info)


class Navigation:
    """The point in a maze. `navigate`: goal after goal. `stitch`: one goal, four cells away. White noise on both."""

    def __init__(self, scene: str, kind: str, episode_steps: int):
        import gymnasium
        import ogbench.locomaze  # noqa: F401  (registers the environments)

        self.env: Any = gymnasium.make(f"{scene}-v0", terminate_at_goal=False, max_episode_steps=episode_steps)
        self.maze: Any = self.env.unwrapped
        self.kind = kind
        free = self.maze.maze_map == 0
        self.cells = [(int(i), int(j)) for i, j in np.argwhere(free)]
        self.goals = [cell for cell in self.cells if not _in_hallway(free, *cell)]

        @functools.cache  # the oracle searches the maze at each step, but its result depends on the cells only
        def subgoal(start, goal):
            return self.maze.get_oracle_subgoal(self.maze.ij_to_xy(start), self.maze.ij_to_xy(goal))[0]

        self.subgoal = subgoal

    def reset(self, seed, rng):
        self.rng = rng
        self.env.action_space.seed(seed)  # a reset takes random actions
        start = self._draw(self.cells)
        goal = self._draw(self.goals if self.kind == "navigate" else self._cells_at_distance(start, 4) or [start])
        return self.env.reset(seed=seed, options={"task_info": {"init_ij": start, "goal_ij": goal}})

    def act(self, obs, info):
        xy, goal = self.maze.get_xy(), self.maze.cur_goal_xy
        direction = self.subgoal(self.maze.xy_to_ij(xy), self.maze.xy_to_ij(goal)) - xy
        direction = direction / (np.linalg.norm(direction) + 1e-6)
        return direction + np.random.normal(0, 0.5, 2)  # noqa: NPY002

    def after(self, info):
        if info["success"] and self.kind == "navigate":
            self.maze.set_goal(goal_xy=self.maze.add_noise(self.maze.ij_to_xy(self._draw(self.goals))))

    def healthy(self, info):
        return True

    def _draw(self, cells):
        return cells[self.rng.integers(len(cells))]

    def _cells_at_distance(self, start, steps):
        distance = {start: 0}
        queue = [start]
        for i, j in queue:  # breadth first; the loop extends the list
            for cell in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)):
                if cell in self.cells and cell not in distance:
                    distance[cell] = distance[i, j] + 1
                    queue.append(cell)
        return [cell for cell, d in distance.items() if d == steps]


def _in_hallway(free: np.ndarray, i: int, j: int) -> bool:
    """Whether both neighbours along one axis are free and both along the other are walls."""
    rows, columns = free[[i - 1, i + 1], j], free[i, [j - 1, j + 1]]
    return bool((rows.all() and not columns.any()) or (columns.all() and not rows.any()))
