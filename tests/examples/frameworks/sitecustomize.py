"""The frameworks of the examples, behind the packages that the service itself has."""

import os
import sys

sys.path.append(os.environ["TEST_FRAMEWORKS"])
