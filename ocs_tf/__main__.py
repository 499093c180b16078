"""`python -m ocs_tf`: the same as the command `ocs_tf`."""

import sys

from ocs_tf.cli import main

sys.exit(main())
