"""Runs that resume: settings, metrics and checkpoints in one folder. Needs the extra `runs`."""

try:
    from shortcutrl.runs._checkpoint import load_checkpoint as load_checkpoint
    from shortcutrl.runs._rows import append_row as append_row
    from shortcutrl.runs._rows import load_settings as load_settings
    from shortcutrl.runs._rows import read_rows as read_rows
    from shortcutrl.runs._run import Run as Run
except ModuleNotFoundError as _error:
    _package = (_error.name or "").partition(".")[0]
    raise ImportError(f"shortcutrl.runs needs {_package}: pip install 'shortcutrl[runs]'") from _error
