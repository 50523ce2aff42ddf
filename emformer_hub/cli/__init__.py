"""``emformer-hub``: the command line."""

from emformer_hub.cli.reconstruct import main

__all__ = ["main"]
