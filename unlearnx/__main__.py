"""``python -m unlearnx`` is the command line."""

from unlearnx.cli import main

main()
