"""Memory awareness: what limit holds here, what counts against it, who holds how much."""
