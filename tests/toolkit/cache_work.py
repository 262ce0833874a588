"""Opens a dataset through the cache, slowly. Arguments: the dataset and a file that notes who decodes."""

import os
import sys
import time
from pathlib import Path
from typing import Any

from toolkit.data import cache, pictures


def slow_pictures(*arguments: Any) -> Any:
    with Path(sys.argv[2]).open("a") as log:
        log.write(f"{os.getpid()}\n")
    for images in pictures.read_pictures(*arguments):
        yield images
        time.sleep(0.3)


if __name__ == "__main__":
    cache.read_pictures = slow_pictures
    cache.open_clips(sys.argv[1], 32, workers=1)
