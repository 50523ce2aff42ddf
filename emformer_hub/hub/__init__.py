"""Model pages: one folder in ``model_cards/`` is one page on the Hub."""
