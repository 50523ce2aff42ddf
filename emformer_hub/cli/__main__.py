"""``python -m emformer_hub.cli``."""

from emformer_hub.cli import main

main()
