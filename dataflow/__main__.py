"""`python -m dataflow`: the command line."""

import sys

from dataflow.cli import main

if __name__ == "__main__":
    sys.exit(main())
