"""What the commands of :mod:`unlearnx.cli` are made of: their options, the studies they offer, what they print."""
