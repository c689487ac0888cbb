"""Benchmark suites: each module turns a name into a [`Task`][shortcutrl.suites.Task] and needs an extra of its own."""

from shortcutrl.suites._task import Task as Task
