"""Download OGBench's own files."""

import zipfile
from http.client import HTTPException
from pathlib import Path
from urllib.request import Request, urlopen

from filelock import FileLock
from ogbench import utils
from tqdm import tqdm

from shortcutrl._files import whole

_FAILURES = (OSError, HTTPException, ValueError)  # the last is for a bad URL, such as that of a proxy


def url_of(file: str) -> str:
    return f"{utils.DATASET_URL}/{file}"


def reachable(url: str, timeout: float = 5.0) -> bool:
    """Whether the host, through any proxy, answers with the first bytes of an archive."""
    try:
        with urlopen(Request(url, headers={"Range": "bytes=0-3"}), timeout=timeout) as response:
            return response.read(4) == b"PK\x03\x04"
    except _FAILURES:
        return False


def download(dataset: str, folder: Path, progress: bool) -> Path:
    """Download the dataset and its validation set to `folder`. If several processes ask, one downloads."""
    path = folder / f"{dataset}.npz"
    with FileLock(folder / f".{dataset}.lock"):
        for file in (folder / f"{dataset}-val.npz", path):
            if not file.exists():
                _fetch(url_of(file.name), file, progress)
    return path


def _fetch(url: str, path: Path, progress: bool) -> None:
    partial = path.with_name(f"{path.name}.partial")
    try:
        with urlopen(url, timeout=60) as response, whole(path, partial) as file:
            bar = {"total": response.length, "desc": f"downloading {path.name}", "disable": not progress}
            with tqdm.wrapattr(file, "write", **bar) as out:
                while block := response.read(2**20):
                    out.write(block)
            file.flush()
            if not zipfile.is_zipfile(partial):  # the directory of an archive is at its end
                raise ValueError("the answer is not a whole archive")
    except _FAILURES as error:
        raise OSError(f"{url} cannot be downloaded to {path.parent} ({error}). Run again, or put it there.") from error
