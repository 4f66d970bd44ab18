"""`python -m clew`."""

import sys

from .cli import main

sys.exit(main())
