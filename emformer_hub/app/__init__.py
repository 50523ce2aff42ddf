"""The demo page, on this machine or as a Space on the Hub: restores a stack and shows both."""
