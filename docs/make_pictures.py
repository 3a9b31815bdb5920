"""The pictures of the README: a plan and a run's report, as a headless Chromium shows them (`make docs-pictures`).

Both pages are made by the commands a user types, the plan for a named card and the report by a short run of the demo,
so a picture shows what the program writes today. Chromium is not a dependency of anything else: CHROMIUM names it
where it is not on the PATH. Pictures are committed; nothing checks that they are the newest.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

IMAGES = Path(__file__).parent / "images"
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
LARGEST = 200 * 1024
"""Bytes of a picture: they lie in the repository."""


def main() -> int:
    """Make both pictures; 1 if there is no browser."""
    chromium = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if chromium is None:
        print("no Chromium here: install one, or name it in the environment variable CHROMIUM")
        return 1
    with tempfile.TemporaryDirectory() as folder:
        page, runs = Path(folder) / "plan.html", Path(folder) / "runs"
        _qdora_fast("plan", "llama3.1-8b-24gb", "--card", "24", "--html", str(page))
        _picture(chromium, page, IMAGES / "plan.png", height=770)
        _qdora_fast("train", "demo", "--set", "train.max_steps=60", "--set", f"run.dir={runs}")
        _picture(chromium, runs / "demo" / "report.html", IMAGES / "report.png", height=748)
    return 0


def _qdora_fast(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "qdora_fast", *arguments], check=True, stdout=subprocess.DEVNULL)


def _picture(chromium: str, page: Path, picture: Path, *, height: int, width: int = 1000) -> None:
    """The top of a page, in the light colours.

    --no-sandbox: Chromium as root needs it, and the pages are our own and hold no scripts from elsewhere.
    """
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={width},{height}"]
    command = [chromium, *options, f"--screenshot={picture}", page.resolve().as_uri()]
    subprocess.run(command, check=True, capture_output=True)
    size = picture.stat().st_size
    print(f"{picture.relative_to(IMAGES.parent.parent)}: {size // 1024} KiB")
    assert size <= LARGEST, f"{picture} is larger than {LARGEST} bytes"


if __name__ == "__main__":
    sys.exit(main())
