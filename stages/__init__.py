"""One module for each stage of dvc.yaml."""

import sys

if sys.argv[0] == "-m":  # `python -m stages.<name>`, before its imports
    from howto.core.process import exit_while_loading

    exit_while_loading()
