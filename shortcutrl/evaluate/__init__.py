"""Evaluation in many Gymnasium environments at once. Needs the extra `evaluate`."""

try:
    from shortcutrl.evaluate._act import keyed as keyed
    from shortcutrl.evaluate._evaluate import evaluate as evaluate
    from shortcutrl.evaluate._pool import EnvPool as EnvPool
    from shortcutrl.evaluate._record import record as record
    from shortcutrl.evaluate._statistics import Evaluation as Evaluation
    from shortcutrl.evaluate._wrappers import ChunkedActions as ChunkedActions
    from shortcutrl.evaluate._wrappers import ScaledActions as ScaledActions
    from shortcutrl.evaluate._wrappers import StackedFrames as StackedFrames
except ModuleNotFoundError as _error:
    raise ImportError(f"shortcutrl.evaluate needs {_error.name}: pip install 'shortcutrl[evaluate]'") from _error
