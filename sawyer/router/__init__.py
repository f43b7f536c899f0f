"""The router: trunk and gates, dispatch to experts on nodes, sampling, metering. Imports no other program."""
