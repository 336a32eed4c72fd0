"""``python -m sensevoice_service``: see ``cli.command``."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

from sensevoice_service.cli.command import main

if __name__ == "__main__":
    status = main()
    for stream in filter(None, (sys.stdout, sys.stderr)):  # either may have been closed
        with suppress(OSError):  # nobody reads on
            stream.flush()
    # Without the interpreter's own end: it waits for threads that decode, and aborts if one is
    # still inside of the model.
    os._exit(status)
