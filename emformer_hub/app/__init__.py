"""The demo page, on this machine or as a Space on the Hub: a stack in, an isotropic volume out, and a look at both."""
