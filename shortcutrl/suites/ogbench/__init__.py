"""OGBench's single-task datasets. Needs the extra `ogbench`."""

try:
    from shortcutrl.suites.ogbench._generate import CAN_GENERATE as CAN_GENERATE
    from shortcutrl.suites.ogbench._generate import generate as generate
    from shortcutrl.suites.ogbench._load import load as load
    from shortcutrl.suites.ogbench._load import make_env as make_env
except ModuleNotFoundError as _error:
    raise ImportError(f"shortcutrl.suites.ogbench needs {_error.name}: pip install 'shortcutrl[ogbench]'") from _error
