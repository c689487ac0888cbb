"""Benchmark suites: each module turns a name into a [`Task`][shortcutrl.suites.Task] and needs its own extra."""

from shortcutrl.suites._task import Task as Task
