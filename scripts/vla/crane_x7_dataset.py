"""`python3 crane_x7_dataset.py [FOLDER]`: a look at the recordings, by `tatara data inspect`."""

import sys
from pathlib import Path

from finetune import run

if __name__ == "__main__":
    given = sys.argv[1:] or ["data/tfrecord_logs"]
    # Names of folders as they are where the command was typed.
    words = [str(Path(word).resolve()) if Path(word).exists() else word for word in given]
    run("data", "inspect", *words)
