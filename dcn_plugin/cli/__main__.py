"""``python -m dcn_plugin.cli``: the command without its console script."""

import sys

from dcn_plugin.cli import main

sys.exit(main())
