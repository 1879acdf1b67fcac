"""Say where a word stands that the glossary has replaced by another.

    python scripts/check_words.py

Looked through are code, messages, pages and profiles; the log and the benchmark pages tell of what
was, in the words of then. Exit code 1 names each place with the word to take.
"""

import re
import subprocess
import sys
from pathlib import Path

# What was once written → what to write. docs/glossary.md says what each word means.
WORDS = {
    r"mend(?:s|ed|ing)?": "fix",
    r"pictures?": "image, or chart",
    r"lobby": "rendezvous",
    r"worth another try": "worth retrying",
    r"the whole story": "full log",
    r"for ever": "forever",
}
PLACES = ("workloads", "scripts", "docs", "profiles", "images", "*.md", "*.yaml", "Makefile")
LEFT_OUT = ("tests/", "docs/log.md", "docs/benchmarks/", "scripts/check_words.py", "CHANGELOG.md")
# The setting keeps the name that profiles have.
SETTING = re.compile(r"data\.pictures|\bpictures: (?:Literal|own|shuffled|grey)")


def main() -> int:
    """Print a line for each place; 1 if there is any."""
    listed = ["git", "ls-files", "-co", "--exclude-standard", *PLACES]
    names = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split()
    found = 0
    pattern = re.compile(rf"\b(?:{'|'.join(WORDS)})\b", re.IGNORECASE)
    for name in names:
        path = Path(name)
        if name.startswith(LEFT_OUT) or path.suffix in (".png", ".gif", ".svg", ".lock"):
            continue
        if not path.is_file():
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            for match in pattern.finditer(SETTING.sub("", line)):
                word = match[0]
                better = next(
                    new for old, new in WORDS.items() if re.fullmatch(old, word, re.IGNORECASE)
                )
                print(f"{name}:{number}: {word!r}; write {better!r}")
                found += 1
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
