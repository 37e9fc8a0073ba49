"""`python -m howto`: the `howto` command."""

from howto.tools.cli import main

main()
