"""Files and requests that want to do harm, in tables: code, paths, secrets, bombs, texts, requests, patterns, damage.

    make faults ARGS="--only hostile"            a part of each table, in minutes
    make faults ARGS="--only hostile --full"     all of them
    make faults ARGS="--only hostile-bombs"      one table

Each table is a file here and a line of the result; a case is a name and what is done. All is asked of the real command,
in a fork of one warm process. The payloads are harmless: whatever is run makes a folder (the mark), whatever leaks is
a sentence that stands nowhere else, and nothing is reached but this machine. The same promises are tested part by part
in the tests.
"""

from __future__ import annotations

from faults.hostile import bombs, broken, code, paths, patterns, requests, secrets, texts

GROUPS = (
    code.GROUP,
    paths.GROUP,
    secrets.GROUP,
    bombs.GROUP,
    texts.GROUP,
    requests.GROUP,
    patterns.GROUP,
    broken.GROUP,
)
