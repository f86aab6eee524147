"""`python -m lumbar_utils`: the command line where the library is only on the path, as on Kaggle."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
