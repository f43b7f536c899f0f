"""The authority of a network: who may connect, in which role, until when. Issues, renews and revokes certificates."""
