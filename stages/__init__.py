"""One module for each stage of dvc.yaml."""

import sys

if sys.argv[0] == "-m":  # `python -m stages.<name>`, whose libraries are still to be loaded
    from howto.core.process import ends_while_loading

    ends_while_loading()
