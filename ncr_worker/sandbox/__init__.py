"""Real servers on loopback, for the demo and the tests. One file for each server; see `process.ServerProcess`."""
