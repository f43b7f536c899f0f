"""Keys and envelopes: who is who, and who signed what. The only package that touches `nacl`."""
