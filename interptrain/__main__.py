"""`python -m interptrain` is the `interptrain` command."""

import sys

from interptrain.cli import main

if __name__ == "__main__":
    sys.exit(main())
