"""``python -m fgvar`` is ``fgvar``."""

import sys

from fgvar.cli import main

if __name__ == "__main__":
    sys.exit(main())
