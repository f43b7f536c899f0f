"""Talking: the bus protocol, NATS behind it, and the same in memory. The only package that touches `nats`."""
